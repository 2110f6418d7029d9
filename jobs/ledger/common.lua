-- What the transitions share; the loader puts it, and the tables TEMPLATES and READS of keys.py, in front of each.
-- ARGV[1] is the prefix of the store's keys. Times are this server's clock, in seconds.
--
-- epoch         string  set once recover has run; its absence says that this Redis has forgotten everything
-- run_id        string  the server's when recover last ran, and the versions of jobs that it has listed since: "id 2,3"
-- live          zset    job -> created_at, of jobs that have not ended
-- ended         zset    job -> ended_at, of jobs whose summary remains
-- leases        zset    job:batch -> expiry; batch -1 is the job's finalization
-- deadlines     zset    job -> deadline
-- models        hash    model -> 0, of every model in use
-- unpinned:V:M  zset    member -> which of those that entered it is, of claimable jobs of version V that no worker has
--                       begun
-- pinned:V:F:M  zset    member -> pass, of claimable jobs of version V that belong to the workers of fingerprint F, and
--                       of those of unpinned:V:M that they have seen: a job has a pass of its own with each of them
--                       until it is begun
-- vtime:M       hash    claimed: time of the last claim; entered: how many jobs have entered unpinned:V:M so far; and
--                       for the workers of each fingerprint time:F: their virtual time; seen:V:F: what entered was when
--                       they last looked into unpinned:V:M; behind:V:F: what is added to passes in pinned:V:F:M before
--                       they are compared with their time
-- due:V:M       zset    job -> since when, of jobs of version V that wait for a finalizer
-- shown:M       string  JSON of what a worker of the model last showed while it had work (with a TTL)
-- job:J         hash    spec, version, status, counters, cursor, pass, fingerprint, rate marks
-- job:J:returned list   batches given back, the next to claim first
-- job:J:done    bitmap  batches whose part is in the store
-- job:J:leases  hash    batch -> token|attempt|rows|tokens|owner
-- job:J:attempts hash   batch -> claims|expiries|token|failures, only of batches that were given back or revived
-- job:J:errors  hash    error code -> rows
-- job:J:suspects hash   batch -> JSON {token, row, crashes: {row: runs it did not survive}}, of batches run row by row
local FINALIZE = '-1'
local SUMMARY_S = 7 * 86400
local RATE_S = 15
local RATE_MAX_S = 60
local RATE_IDLE_S = 120
local JUDGED_ROWS = 200
local COUNTS = { 'completed', 'failed', 'cancelled', 'expired', 'prompt_tokens', 'completion_tokens' }

local call = redis.call
local time = call('TIME')
local now = time[1] + time[2] / 1000000

local function key(name, a, b, c)
  return ARGV[1] .. string.format(TEMPLATES[name], a, b, c)
end

-- All digits of a number: Lua's own tostring keeps 14, too few for times and passes.
local function num(value)
  return string.format('%.17g', value)
end

local function get(job, ...)
  return unpack(call('HMGET', key('job', job), ...))
end

local function set(job, ...)
  call('HSET', key('job', job), ...)
end

-- Rows of a job by error code.
local function errors_of(job)
  local errors, flat = {}, call('HGETALL', key('job_errors', job))
  for i = 1, #flat, 2 do errors[flat[i]] = tonumber(flat[i + 1]) end
  return errors
end

local function is_live(status)
  return status == 'in_progress' or status == 'paused' or status == 'finalizing' or status == 'cancelling'
end

-- Every batch is done, leased, returned, or still ahead of the cursor; the last two can be claimed.
local function claimable(job)
  local status, batches, done = get(job, 'status', 'batches', 'done')
  if status ~= 'in_progress' then return 0 end
  return batches - done - call('HLEN', key('job_leases', job))
end

local function pool(version, model, fingerprint)
  if fingerprint then return key('pinned', version, fingerprint, model) end
  return key('unpinned', version, model)
end

-- Where the job waits for a finalizer.
local function due_of(job)
  return key('due', get(job, 'version', 'model'))
end

-- The pass at which a job enters a pool. The workers of each fingerprint share a time of their own: those of another
-- may be a hundred times as fast. It enters at that time, or where all jobs of its version are behind it, at theirs.
-- They are behind where few of the workers read that version. What they have missed is no credit, or they would shut
-- all others out once more do.
local function entry(place, at)
  local first = tonumber(call('ZRANGE', place, 0, 0, 'WITHSCORES')[2])
  return math.min(at, first or at)
end

-- Takes a job out of all pools in which it can be.
local function leave_pools(version, model, fingerprint, member)
  if fingerprint then
    call('ZREM', pool(version, model, fingerprint), member)
  elseif call('ZREM', pool(version, model), member) == 1 then
    for _, field in ipairs(call('HKEYS', key('vtime', model))) do
      local saw = string.match(field, '^seen:%d+:(.*)$')
      if saw then call('ZREM', pool(version, model, saw), member) end
    end
  end
end

-- Lists the job in its pool exactly while a batch of it can be claimed. A job that enters, or comes back,
-- starts at the current virtual time: the time it was away is not credit.
local function sync_pool(job)
  local version, model, fingerprint, member, pass = get(job, 'version', 'model', 'fingerprint', 'member', 'pass')
  local ready = pool(version, model, fingerprint)
  if claimable(job) <= 0 then
    leave_pools(version, model, fingerprint, member)
  elseif not call('ZSCORE', ready, member) then
    local score
    if fingerprint then
      local at, behind = unpack(call('HMGET', key('vtime', model), 'time:' .. fingerprint,
        'behind:' .. version .. ':' .. fingerprint))
      score = num(math.max(tonumber(pass), entry(ready, (at or 0) - (behind or 0))))
      set(job, 'pass', score)
    else
      score = call('HINCRBY', key('vtime', model), 'entered', 1)
    end
    call('ZADD', ready, score, member)
  end
end

-- Brings the job's status and its places in pools and queues in line with its batches: to be called last by
-- whatever changed them. Finalization is due when every batch is done, or a stopping job has no lease left.
local function settle(job)
  local status, batches, done = get(job, 'status', 'batches', 'done')
  if (status == 'in_progress' or status == 'paused') and done == batches then
    status = 'finalizing'
    set(job, 'status', status)
    call('HDEL', key('job', job), 'reason')
    call('ZREM', key('deadlines'), job)
  end
  if (status == 'finalizing' or status == 'cancelling') and call('HLEN', key('job_leases', job)) == 0 then
    call('ZADD', due_of(job), 'NX', num(now), job)
  end
  sync_pool(job)
end

local function lease(job, batch)
  local held = call('HGET', key('job_leases', job), batch)
  if not held then return nil end
  local token, attempt, rows, tokens, owner = string.match(held, '^([^|]*)|(%d+)|(%d+)|(%d+)|(.*)$')
  return { token = token, attempt = attempt, rows = rows, tokens = tokens, owner = owner }
end

local function put_lease(job, batch, token, attempt, rows, tokens, owner, lease_s)
  local value = table.concat({ token, attempt, rows, tokens, owner }, '|')
  call('HSET', key('job_leases', job), batch, value)
  call('ZADD', key('leases'), num(now + lease_s), job .. ':' .. batch)
end

-- Whether there was one.
local function drop_lease(job, batch)
  call('ZREM', key('leases'), job .. ':' .. batch)
  return call('HDEL', key('job_leases', job), batch) == 1
end

-- claims, expiries, last token and failures of a batch that was given back; claims is nil for one that never was.
-- Earlier versions wrote no failures.
local function attempts(job, batch)
  local value = call('HGET', key('job_attempts', job), batch)
  if not value then return nil, 0, '', 0 end
  local claims, expiries, token, failures = string.match(value, '^(%d+)|(%d+)|([^|]*)|?(%d*)$')
  return tonumber(claims), tonumber(expiries), token, tonumber(failures) or 0
end

-- Puts into a claim what is remembered of its batch: which attempt this is, and how the earlier ones ended.
local function remember(claim)
  local claims, expiries, _, failures = attempts(claim.job, claim.batch)
  claim.attempt, claim.expiries, claim.failures = (claims or 0) + 1, expiries, failures
end

local function put_attempts(job, batch, claims, expiries, token, failures)
  call('HSET', key('job_attempts', job), batch, table.concat({ claims, expiries, token, failures }, '|'))
end

-- The row that a batch's run noted before it began, under which lease, and how many runs each row did not survive.
local function suspects(job, batch)
  local value = call('HGET', key('job_suspects', job), batch)
  return value and cjson.decode(value) or { token = '', row = '', crashes = {} }
end

local function put_suspects(job, batch, known)
  call('HSET', key('job_suspects', job), batch, cjson.encode(known))
end

-- Counts a crash, or takes one back, for the row that ran alone under this lease, if one did.
local function blame(job, batch, token, crashes)
  local known = suspects(job, batch)
  if token == '' or known.token ~= token then return end
  known.crashes[known.row] = math.max((known.crashes[known.row] or 0) + crashes, 0)
  put_suspects(job, batch, known)
end

-- Leases the finalization of a job that waits for one; the claim.
local function claim_due(job, owner, token, lease_s)
  local claim = { kind = 'finalize', job = job, batch = FINALIZE, token = token }
  remember(claim)
  claim.ending = get(job, 'ending') or 'completed'
  call('ZREM', due_of(job), job)
  put_lease(job, FINALIZE, token, claim.attempt, 0, 0, owner, lease_s)
  return claim
end

-- Takes a lease back. One that `expired` leaves its token, by which a late heartbeat can revive it. One whose owner
-- `crashed` leaves none, for the owner itself has said so. Both count as expiries, and the batch goes behind the
-- others. What is `released` goes to the front; so does what `failed`, and is counted as a run that failed.
local function give_back(job, batch, how)
  local held = lease(job, batch)
  drop_lease(job, batch)
  local _, expiries, _, failures = attempts(job, batch)
  local crashed = how == 'expired' or how == 'crashed'
  if crashed then blame(job, batch, held.token, 1) end
  put_attempts(job, batch, held.attempt, expiries + (crashed and 1 or 0), how == 'expired' and held.token or '',
    failures + (how == 'failed' and 1 or 0))
  if batch ~= FINALIZE then
    call(crashed and 'RPUSH' or 'LPUSH', key('job_returned', job), batch)
  end
  settle(job)
end

-- The first sign of work on a job: from here its rate is measured.
local function start(job)
  if call('HSETNX', key('job', job), 'started_at', num(now)) == 0 then return end
  -- A retry begins with the rows that it carried over.
  local completed, failed, cancelled, expired, prompt, completion =
    get(job, 'completed', 'failed', 'cancelled', 'expired', 'prompt_tokens', 'completion_tokens')
  local rows, tokens = completed + failed + cancelled + expired, prompt + completion
  set(job, 'a_at', num(now), 'a_rows', rows, 'a_tokens', tokens, 'b_at', num(now), 'b_rows', rows, 'b_tokens', tokens)
end

-- Two marks (time, rows, tokens): the rate is what came since the older one, a; b takes its place once it is
-- RATE_S old. After a long silence the marks start anew.
local function mark_rate(job, rows, tokens, new_rows, new_tokens)
  local b_at, last_at = get(job, 'b_at', 'last_at')
  b_at = tonumber(b_at or '0')
  if now - tonumber(last_at or b_at) > RATE_IDLE_S then
    local at = num(math.max(b_at, now - RATE_MAX_S))
    set(job, 'a_at', at, 'a_rows', rows - new_rows, 'a_tokens', tokens - new_tokens)
    set(job, 'b_at', at, 'b_rows', rows - new_rows, 'b_tokens', tokens - new_tokens)
  elseif now - b_at >= RATE_S then
    local b_rows, b_tokens = get(job, 'b_rows', 'b_tokens')
    set(job, 'a_at', num(b_at), 'a_rows', b_rows, 'a_tokens', b_tokens)
    set(job, 'b_at', num(now), 'b_rows', rows, 'b_tokens', tokens)
  end
  set(job, 'last_at', num(now))
end

-- Notes a batch as done with the counts of its part, and whether a lease ended with that. Answers false if it was done
-- already, else the job's counts by now.
local function record(job, batch, counts)
  if call('SETBIT', key('job_done', job), batch, 1) == 1 then return false end
  local leased = drop_lease(job, batch)
  local attempted, suspected = key('job_attempts', job), key('job_suspects', job)
  if call('EXISTS', attempted, suspected) > 0 then
    call('HDEL', suspected, batch)
    if call('HDEL', attempted, batch) == 1 then call('LREM', key('job_returned', job), 0, batch) end
  end
  local known, totals, changed = { get(job, 'done', unpack(COUNTS)) }, {}, {}
  totals.done = known[1] + 1
  changed[1], changed[2] = 'done', totals.done
  for i, name in ipairs(COUNTS) do
    totals[name] = known[i + 1] + counts[name]
    if counts[name] ~= 0 then
      changed[#changed + 1] = name
      changed[#changed + 1] = string.format('%d', totals[name])
    end
  end
  set(job, unpack(changed))
  for code, rows in pairs(counts.errors) do
    call('HINCRBY', key('job_errors', job), code, string.format('%d', rows))
  end
  return totals, leased
end

-- A stopping job takes no more claims and ends as `ending`. Answers the job's status, or false if unknown.
local function stop(job, ending)
  local status = get(job, 'status')
  if status ~= 'in_progress' and status ~= 'paused' then return status end
  set(job, 'status', 'cancelling', 'ending', ending)
  call('ZREM', key('deadlines'), job)
  settle(job)
  return 'cancelling'
end

-- Removes all of a job but its hash.
local function clear(job)
  local version, model, fingerprint, member = get(job, 'version', 'model', 'fingerprint', 'member')
  for _, batch in ipairs(call('HKEYS', key('job_leases', job))) do
    call('ZREM', key('leases'), job .. ':' .. batch)
  end
  if member then leave_pools(version, model, fingerprint, member) end
  if model then call('ZREM', key('due', version, model), job) end
  call('ZREM', key('deadlines'), job)
  call('ZREM', key('live'), job)
  call('DEL', key('job_returned', job), key('job_done', job), key('job_leases', job), key('job_attempts', job),
    key('job_errors', job), key('job_suspects', job))
  -- With no job left there is no time to share, and an idle Redis holds nothing that does not expire.
  if call('EXISTS', key('live')) == 1 then return end
  for _, name in ipairs(call('HKEYS', key('models'))) do call('DEL', key('vtime', name)) end
  call('DEL', key('models'))
end

-- Leaves a summary of a live job that ended.
local function end_job(job, status, errors)
  clear(job)
  call('HDEL', key('job', job), 'member', 'pass', 'cursor', 'cost', 'fingerprint', 'ending', 'base_completed',
    'base_failed', 'base_errors', 'a_at', 'a_rows', 'a_tokens', 'b_at', 'b_rows', 'b_tokens', 'last_at')
  set(job, 'status', status, 'ended_at', num(now), 'errors', errors)
  call('EXPIRE', key('job', job), SUMMARY_S)
  call('ZREMRANGEBYSCORE', key('ended'), '-inf', num(now - SUMMARY_S))
  call('ZADD', key('ended'), num(now), job)
  call('EXPIRE', key('ended'), SUMMARY_S)
end
