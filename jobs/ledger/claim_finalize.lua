#!lua flags=allow-oom
-- claim_finalize(job or '', owner, token, lease_s): as claim, for a finalization alone: of this job, or of any. It takes
-- a little memory, and what it leads to gives more back.
-- Reads models (hash), job:J and job:J:attempts (hashes); writes due:M and leases (zsets), job:J:leases (hash).
local wanted, owner, token, lease_s = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

local function find()
  if wanted ~= '' then
    local model = get(wanted, 'model')
    if model and call('ZSCORE', key('due', model), wanted) then return wanted, model end
    return nil
  end
  for _, model in ipairs(call('HKEYS', key('models'))) do
    local job = call('ZRANGE', key('due', model), 0, 0)[1]
    if job then return job, model end
  end
end

local job, model = find()
if not job then return false end
local found = claim_due(job, model, owner, token, lease_s)
found.more = find() ~= nil
return cjson.encode(found)
