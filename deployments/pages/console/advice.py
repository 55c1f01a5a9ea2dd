"""What to do about errors, in Chinese: the API says it in English."""

from cluster.reports.activity import ShownError
from deployments.pages.console.words import WORDS, Words

_CHINESE = {
    "admin_key_needed": "有人在没有管理员密钥时尝试管理：请为需要的人创建管理员密钥。",
    "answer_not_found": "客户端评价的回答不属于其团队，或已超过一天。",
    "context_length_exceeded": "提示超过模型的上下文长度：请缩短提示，或部署上下文更长的模型。",
    "disk_full": "data_dir 所在磁盘已满：请腾出空间。",
    "engine_failed": "引擎在此模型上出错：请查看 `dray logs`，以及 `dray status` 中的重启次数。",
    "feedback_unavailable": "团队的 Redis 没有响应：请用 `dray doctor` 检查。",
    "host_not_allowed": "请求使用了 Dray 不认识的主机名：请把它加入 server.allowed_hosts。",
    "insufficient_quota": "团队本月的 token 或费用已用完：请用 `dray teams set` 提高上限。",
    "internal_error": "Dray 内部出错：请在 `dray logs` 中查找请求 ID，并报告此错误。",
    "invalid_api_key": "客户端的密钥有误、已过期或已被吊销：请新建或轮换密钥。",
    "model_not_allowed": "团队无权使用此模型：请在团队设置中允许它。",
    "model_not_found": "客户端请求的模型没有部署：请更正名称，或在 model.aliases 中添加别名。",
    "no_chat_page": "有人打开了没有安装的页面：请安装附加组件 `page`。",
    "not_a_teams_key": "客户端用管理员密钥请求模型：请改用团队密钥。",
    "not_cached": "客户端只要缓存的回答，而缓存中没有：请用 `dray warm` 预热缓存。",
    "not_ready": "某个模型没有运行中的副本：请查看 `dray status`。",
    "origin_not_allowed": "其他网站的网页发来请求：如果允许，请把它加入 cors.origins。",
    "overloaded": "队列已满：请增加副本（model.max_replicas），或限制请求过多的团队。",
    "rate_limit_exceeded": "团队的请求超过配额：请提高配额，或让客户端按 Retry-After 等待。",
    "request_timeout": "请求用时超过 limits.request_timeout_s：请减少 token，或增加副本。",
    "request_too_large": "请求体超过 limits.body_bytes：请减小请求，或提高上限。",
    "responses_unavailable": "缓存的 Redis 没有响应，无法读取已存的响应：请用 `dray doctor` 检查。",
    "teams_unknown": "路由启动以来，团队的 Redis 一直没有响应：请用 `dray doctor` 检查。",
    "teams_unreachable": "团队的 Redis 没有响应：请用 `dray doctor` 检查。",
    "unsupported_media_type": "客户端发送的不是 JSON：请设置 Content-Type: application/json。",
}
"""By the error's code."""
_CHINESE_STATUSES = {
    400: "请求有误：错误信息指出了出错的字段，需要客户端更正。",
    401: "缺少密钥或密钥有误：请给客户端一个有效的密钥。",
    403: "客户端的密钥无权这样做。",
    404: "客户端请求的内容不存在：请更正 URL 或 ID。",
    405: "客户端对此路径使用了错误的方法。",
    408: "请求到达或处理的时间太长。",
    409: "其他人已修改了同一内容：客户端需要重新读取。",
    413: "请求太大：客户端需要减小请求。",
    415: "客户端需要发送 JSON。",
    421: "客户端使用了 Dray 不认识的主机名。",
    429: "达到上限：请让客户端按 Retry-After 等待，或提高上限。",
    503: "Dray 过载或尚未就绪：请查看 `dray status`。",
    504: "没有已存的回答。",
}
"""By the error's status, where its code says no more."""
_CHINESE_CLIENT = "客户端的请求被拒绝：错误信息说明了原因。"
_CHINESE_SERVER = "Dray 出错：请在 `dray logs` 中查找请求 ID。"


def advice(error: ShownError, words: Words) -> str:
    """What to do about it, in the language of the texts."""
    sentence = _chinese(error) if words is WORDS["zh"] else error.advice
    return sentence.replace("`", "")  # a table has no Markdown


def _chinese(error: ShownError) -> str:
    otherwise = _CHINESE_SERVER if error.status >= 500 else _CHINESE_CLIENT
    return _CHINESE.get(error.code) or _CHINESE_STATUSES.get(error.status, otherwise)
