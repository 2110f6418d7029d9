#!lua flags=allow-oom
-- restore(job, fingerprint or '', batch, counts as JSON, ...): marks batches whose parts are in the store, and
-- pins a job that has no fingerprint; knows no rate. Touches what finish does. 1, or false if the job is unknown.
local job, fingerprint = ARGV[2], ARGV[3]
local status, batches, version, model, pinned, member =
  get(job, 'status', 'batches', 'version', 'model', 'fingerprint', 'member')
if not status then return false end
if not is_live(status) then return 1 end
if fingerprint ~= '' and not pinned then
  leave_pools(version, model, nil, member)
  set(job, 'fingerprint', fingerprint)
  sync_pool(job)
end
if #ARGV == 3 then return 1 end
local begun = false
for i = 4, #ARGV, 2 do
  local batch, counts = tonumber(ARGV[i]), cjson.decode(ARGV[i + 1])
  if batch >= 0 and batch < tonumber(batches) then record(job, ARGV[i], counts) end
  begun = begun or counts.completed + counts.failed + counts.cancelled + counts.expired > 0
end
-- When it started is lost; it was not before it was created. A part of rows that were all carried over is no start.
if begun then call('HSETNX', key('job', job), 'started_at', (get(job, 'created_at'))) end
settle(job)
return 1
