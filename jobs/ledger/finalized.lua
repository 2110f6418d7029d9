#!lua flags=allow-oom
-- finalized(job, ending, counts as JSON, errors as JSON): 1, or 0 if the job is unknown or has ended.
-- The dataset is whole, so anyone may say so. Leaves job:J (hash) with a TTL and a place in ended (zset);
-- removes every other key of the job and its places in live, leases, deadlines, due:V:M and the pools (zsets).
local job, counts = ARGV[2], cjson.decode(ARGV[4])
if not is_live((get(job, 'status'))) then return 0 end
for _, name in ipairs(COUNTS) do
  set(job, name, string.format('%d', counts[name]))
end
end_job(job, ARGV[3], ARGV[5])
return 1
