#!lua
-- claim(model, fingerprint, owner, token, lease_s): a Claim as JSON, or false.
-- A finalization of the model goes first, then a batch of the job with the lowest pass; of jobs of a version that the
-- caller does not read neither.
-- Reads and writes due:V:M, unpinned:V:M, pinned:V:F:M, leases (zsets), vtime and claimed (hashes), job:J (hash),
-- job:J:returned (list), job:J:done (bitmap), job:J:leases, job:J:attempts and job:J:suspects (hashes).
local model, fingerprint, owner, token, lease_s = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
-- Pools of jobs and, beside each, the one that a job is in once it is begun; where finalizations wait; all of these.
local pools, begun, dues, places = {}, {}, {}, {}
for _, version in ipairs(READS) do
  local unpinned, pinned = pool(version, model), pool(version, model, fingerprint)
  pools[#pools + 1], pools[#pools + 2], begun[unpinned], begun[pinned] = unpinned, pinned, pinned, pinned
  dues[#dues + 1] = key('due', version, model)
  for _, place in ipairs({ unpinned, pinned, dues[#dues] }) do places[#places + 1] = place end
end

local function more()
  return call('EXISTS', unpack(places)) > 0
end

-- The member with the lowest pass at the heads of the pools, its pass and its pool.
local function head()
  local member, pass, from, least
  for _, place in ipairs(pools) do
    local first = call('ZRANGE', place, 0, 0, 'WITHSCORES')
    local score = tonumber(first[2])
    if first[1] and (not least or score < least or (score == least and first[1] < member)) then
      member, pass, from, least = first[1], first[2], place, score
    end
  end
  return member, pass, from
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

local member, pass, from = head()
while member do
  local job = string.match(member, ':(.*)$')
  local cursor, batches, done, cost, priority, started =
    get(job, 'cursor', 'batches', 'done', 'cost', 'priority', 'started_at')
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
    call('HSET', key('vtime'), model, pass)
    call('HSET', key('claimed'), model, num(now))
    -- It is in progress, or it would not be in a pool.
    local waits = batches - done - call('HLEN', key('job_leases', job)) > 0
    if from ~= begun[from] or not waits then call('ZREM', from, member) end
    if waits then call('ZADD', begun[from], next_pass, member) end
    found.more = waits or more()
    return cjson.encode(found)
  end
  set(job, 'cursor', ahead)
  call('ZREM', from, member)
  member, pass, from = head()
end
return false
