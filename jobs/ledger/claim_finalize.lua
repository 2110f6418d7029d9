#!lua flags=allow-oom
-- claim_finalize(job or '', owner, token, lease_s): as claim, for a finalization alone: of this job, or of any. It
-- takes a little memory, and what it leads to gives more back.
-- Reads models (hash), job:J and job:J:attempts (hashes); writes due:V:M and leases (zsets), job:J:leases (hash).
local wanted, owner, token, lease_s = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

local function find()
  local models = { get(wanted, 'model') or nil }
  if wanted == '' then models = call('HKEYS', key('models')) end
  for _, model in ipairs(models) do
    for _, version in ipairs(READS) do
      local due = key('due', version, model)
      if wanted == '' then
        local job = call('ZRANGE', due, 0, 0)[1]
        if job then return job end
      elseif call('ZSCORE', due, wanted) then
        return wanted
      end
    end
  end
end

local job = find()
if not job then return false end
local found = claim_due(job, owner, token, lease_s)
found.more = find() ~= nil
return cjson.encode(found)
