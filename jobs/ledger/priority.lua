#!lua flags=allow-oom
-- priority(job, priority): {1, status}, {0, status} where the job has ended, {} if unknown.
-- Later claims are charged by the new weight. Writes job:J (hash).
local job = ARGV[2]
local status = get(job, 'status')
if not status then return {} end
if not is_live(status) then return { 0, status } end
set(job, 'priority', ARGV[3])
return { 1, status }
