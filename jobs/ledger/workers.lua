#!lua flags=allow-oom
-- workers(worker, ...): {worker:W (hash), ...} of those that still live; the others are taken out of workers (set).
local found = {}
for i = 2, #ARGV do
  local fields = call('HGETALL', key('worker', ARGV[i]))
  if fields[1] then
    found[#found + 1] = fields
  else
    call('SREM', key('workers'), ARGV[i])
  end
end
return found
