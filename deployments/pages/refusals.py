"""Why the API refuses a question, in Chinese: the API says it in English."""

from deployments.pages.client import ApiRefused
from deployments.pages.i18n import CHINESE, Texts

_CHINESE = {
    "context_length_exceeded": "对话超过了模型的上下文长度。请缩短问题、新建对话，或在设置中调低最大 token 数。",
    "engine_failed": "生成回答时引擎出错。请重试。",
    "insufficient_quota": "您的团队本月的额度已用完，下月初恢复。",
    "internal_error": "Dray 内部出错。请重试；如果再次出现，请告知管理员。",
    "model_not_allowed": "您的团队不能使用这个模型。请在上方选择其他模型。",
    "model_not_found": "没有这个模型。请在上方选择其他模型。",
    "no_team": "您的登录不属于任何团队。请联系管理员。",
    "not_a_teams_key": "这是管理员密钥，不能用来提问。请在上方输入团队密钥。",
    "not_ready": "模型还没有准备好。请稍后再试。",
    "overloaded": "Dray 正忙，排队已满。请稍后再试。",
    "rate_limit_exceeded": "您的团队已达到请求上限。请稍后再试。",
    "request_timeout": "请求用时过长，已被中止。请缩短问题，或稍后再试。",
    "request_too_large": "对话太长，无法发送。请新建对话。",
    "teams_unknown": "Dray 还没有读到团队和密钥。请稍后再试。",
    "teams_unreachable": "保存团队和密钥的 Redis 没有响应。请稍后再试。",
    "unknown_team": "您的登录所属的团队在 Dray 中不存在。请联系管理员。",
}
"""By the error's code. The API's own sentence stands for all others, which no question of a person causes."""


def refusal_text(error: ApiRefused, texts: Texts) -> str:
    """What was wrong and what to do, in the language of the texts."""
    return _CHINESE.get(error.code, error.message) if texts is CHINESE else error.message
