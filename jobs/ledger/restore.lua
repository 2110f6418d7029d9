#!lua flags=allow-oom
-- restore(job, batch, counts as JSON, ...): marks batches whose parts are in the store; knows no rate.
-- Touches what finish does. 1, or false if the job is unknown; without batches it does no more than say so.
local job = ARGV[2]
local status, batches = get(job, 'status', 'batches')
if not status then return false end
if not is_live(status) or #ARGV == 2 then return 1 end
for i = 3, #ARGV, 2 do
  local batch = tonumber(ARGV[i])
  if batch >= 0 and batch < tonumber(batches) then record(job, ARGV[i], cjson.decode(ARGV[i + 1])) end
end
-- When it started is lost; it was not before it was created.
call('HSETNX', key('job', job), 'started_at', (get(job, 'created_at')))
settle(job)
return 1
