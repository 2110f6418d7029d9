#!lua flags=allow-oom
-- forget(job): removes every key of the job and every mention of it.
local job = ARGV[2]
clear(job)
call('ZREM', key('ended'), job)
return call('DEL', key('job', job))
