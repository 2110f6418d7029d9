#!lua flags=allow-oom
-- register(worker, ttl_s, model, shown, shown_ttl_s, field, value, ...): writes worker:W (hash with a TTL) and workers
-- (set with that TTL), and shown:M (string with a TTL of its own) unless `shown` is empty.
local worker, ttl_s, model, shown, shown_ttl_s = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
call('HSET', key('worker', worker), unpack(ARGV, 7))
call('EXPIRE', key('worker', worker), ttl_s)
call('SADD', key('workers'), worker)
call('EXPIRE', key('workers'), ttl_s)
if shown ~= '' then call('SET', key('shown', model), shown, 'EX', shown_ttl_s) end
return 1
