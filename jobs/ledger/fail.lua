#!lua flags=allow-oom
-- fail(job, reason): 1, or 0 if the job is unknown or has ended. Touches what finalized does; counts stay.
local job = ARGV[2]
if not is_live((get(job, 'status'))) then return 0 end
set(job, 'reason', ARGV[3])
end_job(job, 'failed', cjson.encode(errors_of(job)))
return 1
