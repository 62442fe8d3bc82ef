-- SPDX-License-Identifier: Apache-2.0
-- Health of an SLMModel for Argo CD. No library but Lua's base is needed.

local function answer(status, condition, fallback)
  if condition == nil then
    return { status = status, message = fallback }
  end
  return { status = status, message = condition.reason .. ": " .. (condition.message or "") }
end

local status = obj.status
if status == nil or status.conditions == nil then
  return answer("Progressing", nil, "the operator has not looked at it yet")
end
if status.observedGeneration ~= obj.metadata.generation then
  return answer("Progressing", nil, "the operator has not looked at the present spec yet")
end

local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end
local function is(kind, truth)
  return found[kind] ~= nil and found[kind].status == truth
end

if is("Accepted", "False") then
  return answer("Degraded", found.Accepted)
end
if is("SourceResolved", "False") then
  return answer("Degraded", found.SourceResolved)
end

-- The newest version decides; an earlier one may be offered meanwhile, and Ready's message says so.
local newest = status.versions ~= nil and status.versions[1] or nil
if newest ~= nil and not newest.accepted then
  local going_on = { InProgress = true, [""] = true }
  local suspended = { Paused = true, AwaitingAcceptance = true }
  if suspended[newest.reason or ""] then
    return answer("Suspended", found.Ready)
  end
  if not going_on[newest.reason or ""] then
    return answer("Degraded", found.Ready)
  end
end
if obj.spec.paused then
  return answer("Suspended", nil, "Paused: spec.paused is true; no further version is made")
end
if newest == nil or not newest.accepted then
  return answer("Progressing", found.Ready, "there is no version yet")
end
if not is("SourceResolved", "True") then
  return answer("Progressing", found.SourceResolved, "the source is not known yet")
end
if not is("Ready", "True") then
  return answer("Progressing", found.Ready, "the operator has not said whether it is ready")
end
return answer("Healthy", found.Ready)
