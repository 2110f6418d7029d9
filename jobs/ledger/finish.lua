#!lua flags=allow-oom
-- finish(job, batch, counts as JSON): {first, finalize}; {-1} if the job is unknown, {-2} if it has no such batch.
-- Accepted from anyone: the part is in the store. Writes job:J and job:J:errors (hashes), job:J:done (bitmap), takes
-- the batch out of leases (zset), job:J:leases, job:J:attempts (hashes), job:J:returned (list); settle does the rest.
local job, batch = ARGV[2], ARGV[3]
local counts = cjson.decode(ARGV[4])
local status, batches = get(job, 'status', 'batches')
if not status then return { -1 } end
if tonumber(batch) < 0 or tonumber(batch) >= tonumber(batches) then return { -2 } end
if not is_live(status) then return { 0, 0 } end

-- A job that only fails stops itself and says why. Rows before the last resume were judged then.
local function judge(completed, failed)
  local limit, base_completed, base_failed, base_errors =
    get(job, 'max_error_rate', 'base_completed', 'base_failed', 'base_errors')
  completed, failed = completed - (base_completed or 0), failed - (base_failed or 0)
  local rows = completed + failed
  if rows < JUDGED_ROWS or failed / rows <= tonumber(limit) then return false end
  local before, worst, most = base_errors and cjson.decode(base_errors) or {}, 'no error code', 0
  for code, count in pairs(errors_of(job)) do
    count = count - (before[code] or 0)
    if count > most then worst, most = code, count end
  end
  set(job, 'status', 'paused', 'reason', string.format(
    '%d of %d rows failed, most often with %s; the limit is a rate of %s', failed, rows, worst, limit))
  return true
end

local totals, leased = record(job, batch, counts)
if totals then
  local rows = totals.completed + totals.failed + totals.cancelled + totals.expired
  local new_rows = counts.completed + counts.failed + counts.cancelled + counts.expired
  mark_rate(job, rows, totals.prompt_tokens + totals.completion_tokens, new_rows,
    counts.prompt_tokens + counts.completion_tokens)
  local paused = status == 'in_progress' and totals.failed > 0 and judge(totals.completed, totals.failed)
  -- A leased batch of a job that goes on takes nothing from what can be claimed: there is nothing to settle.
  if leased and status == 'in_progress' and not paused and totals.done < tonumber(batches) then return { 1, 0 } end
  settle(job)
end
return { totals and 1 or 0, call('ZSCORE', due_of(job), job) and 1 or 0 }
