#!lua
-- claim(model, fingerprint, owner, token, lease_s): a Claim as JSON, or false.
-- A finalization of the model goes first, then a batch of the job with the lowest pass.
-- Reads and writes due:M, unpinned:M, pinned:F:M, leases (zsets), models, claimed, vtime:M and seen:M (hashes), job:J
-- (hash), job:J:returned (list), job:J:done (bitmap), job:J:leases, job:J:attempts and job:J:suspects (hashes).
local model, fingerprint, owner, token, lease_s = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local unpinned, pinned, due = key('unpinned', model), key('pinned', fingerprint, model), key('due', model)

local function more()
  return call('EXISTS', unpinned, pinned, due) > 0
end

-- Jobs that nobody has begun, and that these workers see for the first time, enter at their current virtual time. Only
-- their own claims move that time, so it is the time at which those jobs were accepted.
local function see_new()
  local entered, seen = call('HGET', key('models'), model), call('HGET', key('seen', model), fingerprint)
  if seen and seen == entered then return end
  -- A job that was accepted by an earlier version is not named there.
  if not entered then call('HSETNX', key('models'), model, 0) end
  local at = num(vtime(model, fingerprint))
  for _, member in ipairs(call('ZRANGEBYSCORE', unpinned, '(' .. (seen or '-1'), '+inf')) do
    call('ZADD', pinned, 'NX', at, member)
  end
  call('HSET', key('seen', model), fingerprint, entered or 0)
end

local function head()
  return unpack(call('ZRANGE', pinned, 0, 0, 'WITHSCORES'))
end

-- A returned batch, else the next ahead of the cursor; the cursor by then; whether it had been returned. A batch ahead
-- may be done (restored), or leased (adopted by a heartbeat after a recover); one that was adopted and given back is
-- among the returned.
local function next_batch(job, cursor, batches)
  local returned = call('LPOP', key('job_returned', job))
  if returned then return returned, cursor, true end
  local done, leases = key('job_done', job), key('job_leases', job)
  while cursor < batches do
    if call('GETBIT', done, cursor) == 1 then
      local clear_bit = call('BITPOS', done, 0, cursor, -1, 'BIT')
      cursor = clear_bit < 0 and call('STRLEN', done) * 8 or clear_bit
    elseif call('HEXISTS', leases, cursor) == 1 then
      cursor = cursor + 1
    else
      return string.format('%d', cursor), cursor + 1, false
    end
  end
  return nil, batches, false
end

local waiting = call('ZRANGE', due, 0, 0)[1]
if waiting then
  local found = claim_due(waiting, model, owner, token, lease_s)
  call('HSET', key('claimed'), model, num(now))
  found.more = more()
  return cjson.encode(found)
end

if call('EXISTS', unpinned, pinned) == 0 then return false end
see_new()
local member, pass = head()
while member do
  local job = string.match(member, ':(.*)$')
  local cursor, batches, done, cost, priority, started, owned =
    get(job, 'cursor', 'batches', 'done', 'cost', 'priority', 'started_at', 'fingerprint')
  local batch, ahead, returned = next_batch(job, tonumber(cursor), tonumber(batches))
  if batch then
    local found = { kind = 'batch', job = job, batch = batch, token = token, attempt = 1 }
    -- What is remembered of a batch it has from a lease that it had before.
    if returned then
      remember(found)
      found.crashes = suspects(job, batch).crashes
    end
    put_lease(job, batch, token, found.attempt, 0, 0, owner, lease_s)
    if not started then start(job) end
    local next_pass = num(pass + cost / 2 ^ priority)
    set(job, 'cursor', ahead, 'fingerprint', fingerprint, 'pass', next_pass)
    call('HSET', key('vtime', model), fingerprint, pass)
    call('HSET', key('claimed'), model, num(now))
    -- It is in progress, or it would not be in a pool.
    local waits = batches - done - call('HLEN', key('job_leases', job)) > 0
    if not owned or not waits then leave_pools(model, owned, member) end
    if waits then call('ZADD', pinned, next_pass, member) end
    found.more = waits or more()
    return cjson.encode(found)
  end
  set(job, 'cursor', ahead)
  leave_pools(model, owned, member)
  member, pass = head()
end
return false
