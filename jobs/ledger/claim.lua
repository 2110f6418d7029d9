#!lua
-- claim(model, fingerprint, owner, token, lease_s): a Claim as JSON, or false.
-- A finalization of the model goes first, then a batch of the job with the lowest pass; of jobs of a version that the
-- caller does not read neither.
-- Reads and writes due:V:M, unpinned:V:M, pinned:V:F:M, leases (zsets), vtime:M, job:J (hashes),
-- job:J:returned (list), job:J:done (bitmap), job:J:leases, job:J:attempts, job:J:suspects (hashes).
local SEEN_AT_ONCE = 1000
local model, fingerprint, owner, token, lease_s = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])

-- Whether there is work for these workers.
local function more()
  local places = {}
  for _, version in ipairs(READS) do
    places[#places + 1] = key('due', version, model)
    places[#places + 1] = pool(version, model)
    places[#places + 1] = pool(version, model, fingerprint)
  end
  return call('EXISTS', unpack(places)) > 0
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

for _, version in ipairs(READS) do
  local waiting = call('ZRANGE', key('due', version, model), 0, 0)[1]
  if waiting then
    local found = claim_due(waiting, owner, token, lease_s)
    call('HSET', key('vtime', model), 'claimed', num(now))
    found.more = more()
    return cjson.encode(found)
  end
end

-- Of vtime:M how many jobs have entered unpinned, the time of these workers, and for each version in READS how many of
-- those jobs they have seen and how far it is behind. Functions of this would be made anew in each claim, and take as
-- long as commands.
local times, names, pools = key('vtime', model), { 'entered', 'time:' .. fingerprint }, {}
for i, version in ipairs(READS) do
  pools[i] = pool(version, model, fingerprint)
  names[2 * i + 1] = 'seen:' .. version .. ':' .. fingerprint
  names[2 * i + 2] = 'behind:' .. version .. ':' .. fingerprint
end
local known = call('HMGET', times, unpack(names))
local entered, vtime = known[1], tonumber(known[2] or 0)

-- Jobs that nobody has begun, and that these workers see for the first time, enter at their current virtual time. Only
-- their own claims move that time, so it is the time at which those jobs were accepted. Of very many each claim takes
-- some in: a hundred thousand at once would hold Redis up for a quarter of a second.
for i, version in ipairs(READS) do
  local seen, behind = known[2 * i + 1], tonumber(known[2 * i + 2] or 0)
  known[2 * i + 2] = behind
  if not entered or seen ~= entered then
    local at = num(entry(pools[i], vtime - behind))
    local after = '(' .. (seen or '-1')
    local new = call('ZRANGEBYSCORE', pool(version, model), after, '+inf', 'LIMIT', 0, SEEN_AT_ONCE)
    for _, member in ipairs(new) do call('ZADD', pools[i], 'NX', at, member) end
    local last = #new == SEEN_AT_ONCE and call('ZSCORE', pool(version, model), new[#new]) or entered
    -- Of a model without jobs nothing is noted: that would stay.
    if last then call('HSET', times, names[2 * i + 1], last) end
  end
end

while true do
  -- The member that comes first at the heads of the pools, its pass, the index in READS of its job's version, and when
  -- its turn is in the time of these workers.
  local member, pass, from, turn
  for i = 1, #READS do
    local first = call('ZRANGE', pools[i], 0, 0, 'WITHSCORES')
    local at = first[1] and first[2] + known[2 * i + 2]
    if at and (not turn or at < turn or (at == turn and first[1] < member)) then
      member, pass, from, turn = first[1], first[2], i, at
    end
  end
  if not member then return false end
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
    -- The time of these workers goes on to this turn. A version whose turn was due before catches up, all its jobs
    -- alike.
    local field, value = names[2], turn
    if turn < vtime then field, value = names[2 * from + 2], known[2 * from + 2] + vtime - turn end
    call('HSET', times, 'claimed', num(now), field, num(value))
    -- It is in progress, or it would not be in a pool.
    local waits = batches - done - call('HLEN', key('job_leases', job)) > 0
    if not owned or not waits then leave_pools(READS[from], model, owned, member) end
    if waits then call('ZADD', pools[from], next_pass, member) end
    found.more = waits or more()
    return cjson.encode(found)
  end
  set(job, 'cursor', ahead)
  leave_pools(READS[from], model, owned, member)
end
