#!lua flags=no-writes
-- done(job): the batches whose parts are known to be in the store. Reads job:J:done (bitmap).
local bits, batches = call('GET', key('job_done', ARGV[2])), {}
for i = 1, #(bits or '') do
  local byte, batch = string.byte(bits, i), (i - 1) * 8
  local mask = 128
  while byte > 0 do
    if byte >= mask then
      batches[#batches + 1] = batch
      byte = byte - mask
    end
    mask, batch = mask / 2, batch + 1
  end
end
return batches
