#!lua flags=allow-oom
-- sweep(owner, lock_ms, limit): {returned, expired, now, chains}, or false while another sweeps: {job, batch, ...} of
-- leases that expired and went back, and jobs whose deadline passed, at most limit of each; then
-- {model, due finalizations of jobs that the caller reads, last claim or '', ...} of every model in use.
-- Reads models, vtime:M (hashes) and due:V:M (zset); reads and writes sweeping (string with a TTL), leases and
-- deadlines (zsets), and what give_back and stop do.
local owner, lock_ms, limit = ARGV[2], ARGV[3], ARGV[4]
if not call('SET', key('sweeping'), owner, 'NX', 'PX', lock_ms) and call('GET', key('sweeping')) ~= owner then
  return false
end

local returned = {}
for _, member in ipairs(call('ZRANGEBYSCORE', key('leases'), '-inf', num(now), 'LIMIT', 0, limit)) do
  local job, batch = string.match(member, '^(.*):(-?%d+)$')
  if lease(job, batch) then
    give_back(job, batch, 'expired')
    returned[#returned + 1] = job
    returned[#returned + 1] = batch
  else
    call('ZREM', key('leases'), member)
  end
end

local expired = {}
for _, job in ipairs(call('ZRANGEBYSCORE', key('deadlines'), '-inf', num(now), 'LIMIT', 0, limit)) do
  call('ZREM', key('deadlines'), job)
  if stop(job, 'expired') == 'cancelling' then expired[#expired + 1] = job end
end

local chains = {}
for _, model in ipairs(call('HKEYS', key('models'))) do
  local due, last = 0, call('HGET', key('vtime', model), 'claimed')
  for _, version in ipairs(READS) do due = due + call('ZCARD', key('due', version, model)) end
  for _, value in ipairs({ model, due, last or '' }) do chains[#chains + 1] = value end
end
return { returned, expired, num(now), chains }
