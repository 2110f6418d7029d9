#!lua flags=allow-oom
-- stop(job, ending): the job's status now, or false if it is unknown. cancel ends as cancelled, expire as expired;
-- the first of them decides. A job whose batches are all done, or that has ended, stays as it is.
-- Writes job:J (hash), deadlines, due:V:M and the pools (zsets).
return stop(ARGV[2], ARGV[3])
