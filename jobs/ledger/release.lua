#!lua flags=allow-oom
-- release(job, batch, token, failed): gives the lease back at once, in front of all others; 0 if it is not held.
-- failed is 1 where the batch was run and failed.
-- Writes leases, due:M and the pools (zsets), job:J:leases and job:J:attempts (hashes), job:J:returned (list).
local job, batch, token = ARGV[2], ARGV[3], ARGV[4]
local held = lease(job, batch)
if not held or held.token ~= token then return 0 end
give_back(job, batch, false, ARGV[5] == '1')
return 1
