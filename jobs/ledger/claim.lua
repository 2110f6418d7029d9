#!lua
-- claim(model, fingerprint, owner, token, lease_s): {kind, job, batch, attempt, more, ending, failures, expiries,
-- crashes of its rows as JSON}, or false.
-- A finalization of the model goes first, then a batch of the job with the lowest pass.
-- Reads and writes due:M, unpinned:M, pinned:F:M, leases (zsets), vtime and claimed (hashes), job:J (hash),
-- job:J:returned (list), job:J:done (bitmap), job:J:leases, job:J:attempts and job:J:suspects (hashes).
local model, fingerprint, owner, token, lease_s = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local unpinned, pinned, due = key('unpinned', model), key('pinned', fingerprint, model), key('due', model)

local function more()
  return call('EXISTS', unpinned, pinned, due) > 0 and 1 or 0
end

-- The member with the lower pass at the heads of the two pools.
local function head()
  local a = call('ZRANGE', unpinned, 0, 0, 'WITHSCORES')
  local b = call('ZRANGE', pinned, 0, 0, 'WITHSCORES')
  if not a[1] then return b[1], b[2], pinned end
  if not b[1] then return a[1], a[2], unpinned end
  local x, y = tonumber(a[2]), tonumber(b[2])
  if x < y or (x == y and a[1] < b[1]) then return a[1], a[2], unpinned end
  return b[1], b[2], pinned
end

-- A returned batch, else the next ahead of the cursor. A batch there may be done (restored), or leased (adopted
-- by a heartbeat after a recover); one that was adopted and given back is among the returned.
local function next_batch(job)
  local batch = call('LPOP', key('job_returned', job))
  if batch then return batch end
  local cursor, batches = get(job, 'cursor', 'batches')
  cursor, batches = tonumber(cursor), tonumber(batches)
  local done = key('job_done', job)
  while cursor < batches do
    if call('GETBIT', done, cursor) == 1 then
      local clear_bit = call('BITPOS', done, 0, cursor, -1, 'BIT')
      cursor = clear_bit < 0 and call('STRLEN', done) * 8 or clear_bit
    elseif call('HEXISTS', key('job_leases', job), cursor) == 1 then
      cursor = cursor + 1
    else
      set(job, 'cursor', cursor + 1)
      return string.format('%d', cursor)
    end
  end
  set(job, 'cursor', batches)
  return nil
end

local waiting = call('ZRANGE', due, 0, 0)[1]
if waiting then
  local claims, expiries, _, failures = attempts(waiting, FINALIZE)
  local attempt = (claims or 0) + 1
  call('ZREM', due, waiting)
  put_lease(waiting, FINALIZE, token, attempt, 0, 0, owner, lease_s)
  call('HSET', key('claimed'), model, num(now))
  return { 'finalize', waiting, FINALIZE, attempt, more(), get(waiting, 'ending') or 'completed', failures,
    expiries, '{}' }
end

local member, pass, from = head()
while member do
  local job = string.match(member, ':(.*)$')
  local batch = next_batch(job)
  if batch then
    local claims, expiries, _, failures = attempts(job, batch)
    local attempt = (claims or 0) + 1
    put_lease(job, batch, token, attempt, 0, 0, owner, lease_s)
    start(job)
    local cost, priority = get(job, 'cost', 'priority')
    set(job, 'fingerprint', fingerprint, 'pass', num(pass + cost / 2 ^ priority))
    call('HSET', key('vtime'), model, pass)
    call('HSET', key('claimed'), model, num(now))
    call('ZREM', from, member)
    if claimable(job) > 0 then call('ZADD', pinned, (get(job, 'pass')), member) end
    return { 'batch', job, batch, attempt, more(), 'completed', failures, expiries,
      cjson.encode(suspects(job, batch).crashes) }
  end
  call('ZREM', from, member)
  member, pass, from = head()
end
return false
