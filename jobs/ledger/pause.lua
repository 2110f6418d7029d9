#!lua flags=allow-oom
-- pause(job, reason or ''): {1, paused}, {0, status} where the status does not allow it, {} if unknown.
-- Leases go on and finish; only claims stop. Writes job:J (hash) and the job's pool (zset).
local job, reason = ARGV[2], ARGV[3]
local status = get(job, 'status')
if not status then return {} end
if status ~= 'in_progress' and status ~= 'paused' then return { 0, status } end
set(job, 'status', 'paused')
if reason ~= '' then set(job, 'reason', reason) end
settle(job)
return { 1, 'paused' }
