#!lua flags=no-writes
-- backlog(start, jobs): {jobs seen, model, claimable batches, ...} of the live jobs from rank `start` on, oldest first,
-- `jobs` of them at most. Reads live (zset), job:J and job:J:leases (hashes).
local start, jobs = tonumber(ARGV[2]), tonumber(ARGV[3])
local seen, waiting = call('ZRANGE', key('live'), start, start + jobs - 1), {}
for _, job in ipairs(seen) do
  local batches = claimable(job)
  if batches > 0 then
    local model = get(job, 'model')
    waiting[model] = (waiting[model] or 0) + batches
  end
end
local reply = { #seen }
for model, batches in pairs(waiting) do
  reply[#reply + 1] = model
  reply[#reply + 1] = batches
end
return reply
