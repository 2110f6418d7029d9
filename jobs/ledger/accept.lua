#!lua
-- accept(job, created_at, deadline or '', errors as JSON, field, value, ...): 1 if the job is new here, 0 if it is known.
-- Writes job:J, job:J:errors (hashes), live and deadlines (zsets), models, vtime:M (hashes) and, by settle,
-- unpinned:V:M, pinned:V:F:M or due:V:M (zsets).
local job, created_at, deadline = ARGV[2], ARGV[3], ARGV[4]
if call('EXISTS', key('job', job)) == 1 then return 0 end
-- Equal passes are ordered by member: by creation, then by id.
local member = string.format('%017.0f:%s', created_at * 1000000, job)
set(job, 'status', 'in_progress', 'cursor', 0, 'pass', 0, 'done', 0, 'completed', 0, 'failed', 0, 'cancelled', 0,
  'expired', 0, 'prompt_tokens', 0, 'completion_tokens', 0)
set(job, 'member', member, 'created_at', created_at, unpack(ARGV, 6))
for code, rows in pairs(cjson.decode(ARGV[5])) do
  call('HSET', key('job_errors', job), code, string.format('%d', rows))
end
call('ZADD', key('live'), created_at, job)
local model = get(job, 'model')
call('HSETNX', key('models'), model, 0)
call('HSETNX', key('vtime', model), 'entered', 0)
if deadline ~= '' then
  set(job, 'deadline', deadline)
  call('ZADD', key('deadlines'), deadline, job)
end
settle(job)
return 1
