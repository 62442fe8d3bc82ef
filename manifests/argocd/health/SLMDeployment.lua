-- SPDX-License-Identifier: Apache-2.0
-- Health of an SLMDeployment for Argo CD. No library but Lua's base is needed.
-- The order is the meaning: what a person must mend comes before what goes on or waits.

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
local function reason(kind)
  return found[kind] ~= nil and found[kind].reason or ""
end

if is("Ready", "False") and reason("Ready") == "Deleting" then
  return answer("Progressing", found.Ready)
end
if is("Accepted", "False") then
  return answer("Degraded", found.Accepted)
end
-- A revision that was rolled back is not tried again by itself: Git must change.
if is("RolloutSucceeded", "False") and reason("RolloutSucceeded") ~= "Pinned" then
  return answer("Degraded", found.RolloutSucceeded)
end
if is("SignatureVerified", "False") then
  local signature = obj.spec.model.signature
  if signature == nil or signature.policy ~= "Warn" then
    return answer("Degraded", found.SignatureVerified)
  end
end
if is("ModelResolved", "False") then
  -- The SLMModel that it follows is still at work, and says itself when it fails.
  local waits = reason("ModelResolved") == "NoAcceptedVersion"
  return answer(waits and "Progressing" or "Degraded", found.ModelResolved)
end

-- Why a rollout stands still, and is meant to or goes on by itself.
local suspended = { Paused = true, AwaitingApproval = true, OutsideWindow = true }
local waiting = {
  QuorumMissing = true, NoBaseline = true, NoData = true, Inconclusive = true, ProviderError = true,
  NotAccepted = true,
}
if is("Progressing", "False") and reason("Progressing") ~= "Complete" then
  if suspended[reason("Progressing")] then
    return answer("Suspended", found.Progressing)
  end
  if waiting[reason("Progressing")] then
    return answer("Progressing", found.Progressing)
  end
  return answer("Degraded", found.Progressing)
end

-- Ready carries the reason of the first node that cannot serve. While a wave is judged, that is the
-- rollout's business: it rolls back or goes on.
local nobody_judges = { Complete = true, Installing = true, Converging = true }
local starting = { NodesNotReady = true, NotAccepted = true, ModelNotResolved = true }
if is("Ready", "False") and nobody_judges[reason("Progressing")] and not starting[reason("Ready")] then
  return answer("Degraded", found.Ready)
end
-- A first revision that is to have no replica is never installed: there is nothing to wait for.
if reason("Ready") == "ScaledToZero" and reason("Progressing") == "Installing" then
  return answer("Healthy", found.Ready)
end
if is("Progressing", "True") then
  return answer("Progressing", found.Progressing)
end
if not is("Ready", "True") then
  return answer("Progressing", found.Ready, "the operator has not said whether it is ready")
end
-- What users say of the stable revision. A rule with the action Notify or NewModelVersion tells and stops nothing.
if is("FeedbackHealthy", "False") then
  if reason("FeedbackHealthy") == "RollingBack" then
    return answer("Progressing", found.FeedbackHealthy)
  end
  if reason("FeedbackHealthy") ~= "RuleViolated" then
    return answer("Degraded", found.FeedbackHealthy)
  end
end
if is("RolloutSucceeded", "False") then
  return answer("Suspended", found.RolloutSucceeded)
end
if not is("RolloutSucceeded", "True") then
  return answer("Progressing", found.RolloutSucceeded, "the operator has not said what is rolled out")
end
if is("FeedbackHealthy", "False") then
  return answer("Healthy", found.FeedbackHealthy)
end
-- Sites that cannot adapt the model serve it as it was; the message says which, and why.
if is("AdaptationHealthy", "False") then
  return answer("Healthy", found.AdaptationHealthy)
end
return answer("Healthy", found.Ready)
