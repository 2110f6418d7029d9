#!lua flags=no-writes
-- backlog(): {now, model, claimable batches, due finalizations, last claim or '', ...} of the models of live jobs.
-- Reads live and due:M (zsets), vtime and claimed (hashes), job:J and job:J:leases (hashes).
local waiting = {}
for _, job in ipairs(call('ZRANGE', key('live'), 0, -1)) do
  local model = get(job, 'model')
  if model then waiting[model] = (waiting[model] or 0) + claimable(job) end
end
local reply = { num(now) }
for model, batches in pairs(waiting) do
  local last = call('HGET', key('claimed'), model) or ''
  for _, value in ipairs({ model, batches, call('ZCARD', key('due', model)), last }) do reply[#reply + 1] = value end
end
return reply
