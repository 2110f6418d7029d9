#!lua flags=allow-oom
-- reopen(job, counts as JSON, errors as JSON, batch, ...): these finished batches are to be done again, for their
-- parts are gone or damaged; the counts are those of the parts that remain. 1, or 0 if the job is not finalizing.
-- Writes job:J, job:J:errors, job:J:attempts (hashes), job:J:done (bitmap), job:J:returned (list), due:V:M,
-- deadlines and leases (zsets), job:J:leases (hash); settle does the rest.
local job, counts = ARGV[2], cjson.decode(ARGV[3])
local status, deadline = get(job, 'status', 'deadline')
if status ~= 'finalizing' then return 0 end
drop_lease(job, FINALIZE)
call('ZREM', due_of(job), job)
for i = 5, #ARGV do
  if call('SETBIT', key('job_done', job), ARGV[i], 0) == 1 then
    call('HINCRBY', key('job', job), 'done', -1)
    call('RPUSH', key('job_returned', job), ARGV[i])
    put_attempts(job, ARGV[i], 1, 0, '', 0)
  end
end
for _, name in ipairs(COUNTS) do
  set(job, name, string.format('%d', counts[name]))
end
call('DEL', key('job_errors', job))
for code, rows in pairs(cjson.decode(ARGV[4])) do
  call('HSET', key('job_errors', job), code, string.format('%d', rows))
end
set(job, 'status', 'in_progress')
if deadline then call('ZADD', key('deadlines'), deadline, job) end
settle(job)
return 1
