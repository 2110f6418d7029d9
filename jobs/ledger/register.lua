#!lua flags=allow-oom
-- register(worker, ttl_s, field, value, ...): writes worker:W (hash with a TTL) and workers (set with that TTL).
local worker, ttl_s = ARGV[2], ARGV[3]
call('HSET', key('worker', worker), unpack(ARGV, 4))
call('EXPIRE', key('worker', worker), ttl_s)
call('SADD', key('workers'), worker)
call('EXPIRE', key('workers'), ttl_s)
return 1
