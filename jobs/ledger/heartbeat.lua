#!lua flags=allow-oom
-- heartbeat(lease_s, owner, job, batch, token, rows, tokens, ...): for each lease held, lost, cancelled or expired.
-- Reads epoch, run_id (strings), job:J (hash), job:J:done (bitmap); writes leases and the pools and due:V:M (zsets),
-- job:J:leases, job:J:attempts and job:J:suspects (hashes), job:J:returned (list).
local lease_s, owner = tonumber(ARGV[2]), ARGV[3]

-- What a live lease learns. A finalizer goes on whatever its job is ending as.
local function verdict(job, batch, status)
  if status ~= 'cancelling' or batch == FINALIZE then return 'held' end
  return get(job, 'ending')
end

-- Takes a batch out of those that wait for a claim. False where someone else has it, or it is done.
local function take_back(job, batch, token)
  local claims, expiries, last, failures = attempts(job, batch)
  local waits_again = claims and last == token
  if claims and not waits_again then return false end
  if batch == FINALIZE then
    if call('ZREM', due_of(job), job) == 0 then return false end
  else
    -- A stopping job's waiting batches are its finalizer's, once there is one.
    if lease(job, FINALIZE) then return false end
    if waits_again then
      if call('LREM', key('job_returned', job), 1, batch) == 0 then return false end
    else
      -- A recover rebuilt the ledger without leases: this one is adopted while its batch is untouched.
      local cursor, batches, index = get(job, 'cursor', 'batches')
      index = tonumber(batch)
      if index < tonumber(cursor) or index >= tonumber(batches) then return false end
      if call('GETBIT', key('job_done', job), batch) == 1 then return false end
      start(job)
    end
    call('ZREM', due_of(job), job)
  end
  if waits_again then
    put_attempts(job, batch, claims, math.max(expiries - 1, 0), token, failures)
    blame(job, batch, token, -1)
  end
  return true, claims or 1
end

-- Whether recover has listed all jobs that this program reads. One that reads fewer may have been the first to run it.
local function knows_all()
  if call('EXISTS', key('epoch')) == 0 then return false end
  local listed = ',' .. string.match(call('GET', key('run_id')) or '', '[^ ]*$') .. ','
  for _, version in ipairs(READS) do
    if not string.find(listed, ',' .. version .. ',', 1, true) then return false end
  end
  return true
end

local function beat(job, batch, token, rows, tokens)
  local status = get(job, 'status')
  -- A Redis that forgot everything must not make workers drop what they have: recover will list it again.
  if not status then return knows_all() and 'lost' or 'held' end
  if not is_live(status) or token == '' then return 'lost' end
  local held = lease(job, batch)
  if held and held.token ~= token then return 'lost' end
  local attempt, by = held and held.attempt, held and held.owner or owner
  if not held then
    local taken
    taken, attempt = take_back(job, batch, token)
    if not taken then return 'lost' end
  end
  put_lease(job, batch, token, attempt, rows, tokens, by, lease_s)
  if not held then sync_pool(job) end
  return verdict(job, batch, status)
end

local verdicts = {}
for i = 4, #ARGV, 5 do
  verdicts[#verdicts + 1] = beat(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
end
return verdicts
