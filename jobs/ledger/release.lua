#!lua flags=allow-oom
-- release(job, batch, token, how): gives the lease back at once; 0 if it is not held. how is released, failed (the
-- batch was run, and that failed) or crashed (its run took the process with it): see give_back.
-- Writes leases, due:V:M and the pools (zsets), job:J:leases, job:J:attempts and job:J:suspects (hashes),
-- job:J:returned (list).
local job, batch, token = ARGV[2], ARGV[3], ARGV[4]
local held = lease(job, batch)
if not held or held.token ~= token then return 0 end
give_back(job, batch, ARGV[5])
return 1
