#!lua flags=allow-oom
-- suspect(job, batch, token, row): notes that a row of the batch is about to run alone; 0 if the lease is not held.
-- The row that was noted before under this lease has survived: its crashes are forgotten.
-- Reads job:J:leases, writes job:J:suspects (hashes).
local job, batch, token, row = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = lease(job, batch)
if not held or held.token ~= token then return 0 end
local known = suspects(job, batch)
if known.token == token then known.crashes[known.row] = nil end
known.token, known.row = token, row
put_suspects(job, batch, known)
return 1
