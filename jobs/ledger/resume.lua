#!lua flags=allow-oom
-- resume(job): {1, in_progress}, {0, status} where the status does not allow it, {} if unknown.
-- Rows that failed so far are forgiven: only later ones can pause the job again.
-- Reads job:J:errors (hash), writes job:J (hash) and the job's pool (zset).
local job = ARGV[2]
local status, completed, failed = get(job, 'status', 'completed', 'failed')
if not status then return {} end
if status == 'in_progress' then return { 1, status } end
if status ~= 'paused' then return { 0, status } end
set(job, 'status', 'in_progress', 'base_completed', completed, 'base_failed', failed,
  'base_errors', cjson.encode(errors_of(job)))
call('HDEL', key('job', job), 'reason')
settle(job)
return { 1, 'in_progress' }
