#!lua flags=no-writes
-- state(job, ...): {now, {job:J, job:J:errors, values of job:J:leases without the finalizer's}, ...}; all hashes.
-- An empty first hash is an unknown job.
local reply = { num(now) }
for i = 2, #ARGV do
  local running, leases = {}, call('HGETALL', key('job_leases', ARGV[i]))
  for j = 1, #leases, 2 do
    if leases[j] ~= FINALIZE then running[#running + 1] = leases[j + 1] end
  end
  reply[i] = { call('HGETALL', key('job', ARGV[i])), call('HGETALL', key('job_errors', ARGV[i])), running }
end
return reply
