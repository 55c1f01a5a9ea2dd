"""What changes a batch in Redis, each change in one step. cluster.records.batches has the keys.

A batch is a list of tasks: `validate`, then chunks of lines, then `finalize`. A router that works on a task holds a
lease on it, and renews that. A task whose lease has run out is anybody's again: so it is done whoever dies, and since
only the holder can commit it, it counts once. What was made of files that were changed meanwhile (the batch's `changes`
say so) is not committed: the commits then return -1.

KEYS of each: the batch, its tasks, their holders, their parts, the batches that have not ended.
"""

_COMMON = """
local batch, todo, holders, parts, open = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(time[2] / 1000)

local function set(...) redis.call('HSET', batch, ...) end

-- Nothing is left to do but the output.
local function finalize()
  if redis.call('HGET', batch, 'status') ~= 'cancelling' then set('status', 'finalizing', 'finalizing_at', second) end
  redis.call('ZADD', todo, 0, 'finalize')
end

-- Takes away the tasks that nobody works on. Whoever works on one commits what there is.
local function stop_free_tasks()
  redis.call('ZREMRANGEBYSCORE', todo, '-inf', now)
  if redis.call('ZCARD', todo) == 0 then finalize() end
end

-- Why the batch stops: nothing, expired or cancelled.
local function stopped()
  local fields = redis.call('HMGET', batch, 'status', 'expires_at', 'stop')
  local status, stop = fields[1], fields[3] or ''
  if not (status == 'validating' or status == 'in_progress' or status == 'cancelling') then return stop end
  if stop == '' and second >= tonumber(fields[2]) then
    stop = 'expired'
    set('stop', stop)
  end
  if stop ~= '' and not redis.call('ZSCORE', todo, 'finalize') then stop_free_tasks() end
  return stop
end

local function holds(task, holder) return redis.call('HGET', holders, task) == holder end

local function changed(count) return (redis.call('HGET', batch, 'changes') or '0') ~= count end

local function done(task)
  redis.call('ZREM', todo, task)
  redis.call('HDEL', holders, task)
end

local function close(id)
  redis.call('HDEL', open, id)
  redis.call('DEL', todo, holders, parts)
end
"""

# KEYS also: the ids of the owner's batches. ARGV: id, owner, input file, maximum number, prefix of batches' keys, then
# the fields.
CREATE = f"""{_COMMON}
local mine, id = KEYS[6], ARGV[1]
if redis.call('ZCARD', mine) >= tonumber(ARGV[4]) then
  for _, old in ipairs(redis.call('ZRANGE', mine, 0, -1)) do
    if redis.call('HEXISTS', open, old) == 0 then
      redis.call('ZREM', mine, old)
      redis.call('DEL', ARGV[5] .. old)
      break
    end
  end
  if redis.call('ZCARD', mine) >= tonumber(ARGV[4]) then return 0 end
end
set(unpack(ARGV, 6))
redis.call('ZADD', mine, now, id)
redis.call('HSET', open, id, ARGV[2] .. '\\n' .. ARGV[3])
redis.call('ZADD', todo, 0, 'validate')
return 1
"""

# ARGV: id, holder, lease in ms. Returns the task and why the batch stops; nothing if there is no free task.
CLAIM = f"""{_COMMON}
if redis.call('EXISTS', batch) == 0 then
  close(ARGV[1])
  return {{}}
end
local stop = stopped()
local task = redis.call('ZRANGEBYSCORE', todo, '-inf', now, 'LIMIT', 0, 1)[1]
if not task then return {{}} end
redis.call('ZADD', todo, now + ARGV[3], task)
redis.call('HSET', holders, task, ARGV[2])
return {{task, stop}}
"""

# ARGV: task, holder, lease in ms. Returns `lost`, or why the batch stops.
RENEW = f"""{_COMMON}
if not holds(ARGV[1], ARGV[2]) then return 'lost' end
redis.call('ZADD', todo, 'XX', now + ARGV[3], ARGV[1])
return stopped()
"""

# ARGV: task, holder.
RELEASE = f"""{_COMMON}
if not holds(ARGV[1], ARGV[2]) then return 0 end
redis.call('HDEL', holders, ARGV[1])
redis.call('ZADD', todo, 'XX', 0, ARGV[1])
return 1
"""

# ARGV: holder, changes, places of the chunks in the file, number of lines, checksums of the chunks, the object that has
# them, then the names of the chunks.
COMMIT_VALID = f"""{_COMMON}
if not holds('validate', ARGV[1]) then return 0 end
if changed(ARGV[2]) then return -1 end
done('validate')
set('places', ARGV[3], 'total', ARGV[4], 'checksums', ARGV[5], 'checked', ARGV[6])
if stopped() ~= '' then return 1 end
set('status', 'in_progress', 'in_progress_at', second)
for index = 7, #ARGV do redis.call('ZADD', todo, 0, ARGV[index]) end
return 1
"""

# ARGV: task, holder, changes, errors, id, seconds to keep the batch.
COMMIT_FAILED = f"""{_COMMON}
if not holds(ARGV[1], ARGV[2]) then return 0 end
if changed(ARGV[3]) then return -1 end
set('status', 'failed', 'failed_at', second, 'errors', ARGV[4])
close(ARGV[5])
redis.call('EXPIRE', batch, ARGV[6])
return 1
"""

# ARGV: task, holder, part, completed lines, failed lines, changes.
COMMIT_LINES = f"""{_COMMON}
if redis.call('HGET', parts, ARGV[1]) == ARGV[3] then return 1 end -- the reply was lost
if not holds(ARGV[1], ARGV[2]) then return 0 end
if changed(ARGV[6]) then return -1 end
done(ARGV[1])
redis.call('HSET', parts, ARGV[1], ARGV[3])
redis.call('HINCRBY', batch, 'completed', ARGV[4])
redis.call('HINCRBY', batch, 'failed', ARGV[5])
if redis.call('ZCARD', todo) == 0 then finalize() else stopped() end
return 1
"""

# KEYS also: the owner's files and their sizes, and the owners. ARGV: holder, id, owner, seconds to keep the batch,
# status, changes, errors, answers that are lost, then for each output file: the field that names it, its id, its
# record, its bytes.
COMMIT_OUTPUT = f"""{_COMMON}
if ARGV[9] and redis.call('HGET', batch, ARGV[9]) == ARGV[10] then return 1 end -- the reply was lost
if not holds('finalize', ARGV[1]) then return 0 end
if changed(ARGV[6]) then return -1 end
set('status', ARGV[5], ARGV[5] .. '_at', second)
if ARGV[7] ~= '' then set('errors', ARGV[7]) end
if ARGV[8] ~= '0' then
  redis.call('HINCRBY', batch, 'completed', -ARGV[8])
  redis.call('HINCRBY', batch, 'failed', ARGV[8])
end
for index = 9, #ARGV, 4 do
  set(ARGV[index], ARGV[index + 1])
  redis.call('HSET', KEYS[6], ARGV[index + 1], ARGV[index + 2])
  redis.call('HSET', KEYS[7], ARGV[index + 1], ARGV[index + 3])
  redis.call('SADD', KEYS[8], ARGV[3])
end
close(ARGV[2])
redis.call('EXPIRE', batch, ARGV[4])
return 1
"""

# Returns the status before.
CANCEL = f"""{_COMMON}
local status = redis.call('HGET', batch, 'status')
if status == 'validating' or status == 'in_progress' then
  set('status', 'cancelling', 'cancelling_at', second, 'stop', 'cancelled')
  stop_free_tasks()
end
return status
"""
