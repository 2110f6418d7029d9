#!lua
-- claim(model, fingerprint, owner, token, lease_s): a Claim as JSON, or false.
-- A finalization of the model goes first, then a batch of the job with the lowest pass; of jobs of a version that the
-- caller does not read neither.
-- Reads and writes due:V:M, unpinned:V:M, pinned:V:F:M, leases (zsets), models, claimed, vtime:M, seen:M (hashes),
-- job:J (hash), job:J:returned (list), job:J:done (bitmap), job:J:leases, job:J:attempts, job:J:suspects (hashes).
local model, fingerprint, owner, token, lease_s = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
-- Where finalizations wait; those, and all pools of jobs.
local dues, places = {}, {}
for _, version in ipairs(READS) do
  dues[#dues + 1] = key('due', version, model)
  for _, place in ipairs({ pool(version, model), pool(version, model, fingerprint), dues[#dues] }) do
    places[#places + 1] = place
  end
end

local function more()
  return call('EXISTS', unpack(places)) > 0
end

local added = { times(model, fingerprint, READS) }
local vtime = table.remove(added, 1)

-- Jobs that nobody has begun, and that these workers see for the first time, enter at their current virtual time. Only
-- their own claims move that time, so it is the time at which those jobs were accepted.
local function see_new()
  local entered = call('HGET', key('models'), model) or '0'
  for i, version in ipairs(READS) do
    local seen = call('HGET', key('seen', model), version .. ':' .. fingerprint)
    if seen ~= entered then
      local mine = pool(version, model, fingerprint)
      local at = num(entry(mine, vtime, added[i]))
      for _, member in ipairs(call('ZRANGEBYSCORE', pool(version, model), '(' .. (seen or '-1'), '+inf')) do
        call('ZADD', mine, 'NX', at, member)
      end
      call('HSET', key('seen', model), version .. ':' .. fingerprint, entered)
    end
  end
end

-- The member that comes first at the heads of the pools, its pass, the index in READS of its job's version, and when
-- its turn is in the time of these workers.
local function head()
  local member, pass, from, turn
  for i, version in ipairs(READS) do
    local first = call('ZRANGE', pool(version, model, fingerprint), 0, 0, 'WITHSCORES')
    local at = first[1] and first[2] + added[i]
    if at and (not turn or at < turn or (at == turn and first[1] < member)) then
      member, pass, from, turn = first[1], first[2], i, at
    end
  end
  return member, pass, from, turn
end

-- That time goes on to a claim's turn. A version whose turn was due before catches up, all its jobs alike.
local function move_time(turn, from)
  if turn < vtime then
    call('HSET', key('vtime', model), READS[from] .. ':' .. fingerprint, num(added[from] + vtime - turn))
  elseif turn > vtime then
    call('HSET', key('vtime', model), fingerprint, num(turn))
  end
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

for _, due in ipairs(dues) do
  local waiting = call('ZRANGE', due, 0, 0)[1]
  if waiting then
    local found = claim_due(waiting, owner, token, lease_s)
    call('HSET', key('claimed'), model, num(now))
    found.more = more()
    return cjson.encode(found)
  end
end

if not more() then return false end
see_new()
local member, pass, from, turn = head()
while member do
  local job, version = string.match(member, ':(.*)$'), READS[from]
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
    move_time(turn, from)
    call('HSET', key('claimed'), model, num(now))
    -- It is in progress, or it would not be in a pool.
    local waits = batches - done - call('HLEN', key('job_leases', job)) > 0
    if not owned or not waits then leave_pools(version, model, owned, member) end
    if waits then call('ZADD', pool(version, model, fingerprint), next_pass, member) end
    found.more = waits or more()
    return cjson.encode(found)
  end
  set(job, 'cursor', ahead)
  leave_pools(version, model, owned, member)
  member, pass, from, turn = head()
end
return false
