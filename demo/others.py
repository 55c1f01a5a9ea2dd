"""Questions that the bundled model does not answer: unrelated ones, and ones close to its families of problems."""

import random

from demo.clauses import CLAUSES
from demo.phrasings import BEFORE, SIGNS, held_out, trained

_TOPICS = {
    "zh": ("人工智能", "北京", "长城", "量子力学", "红烧肉", "李白", "区块链", "股票", "天气", "高血压", "相对论", "足球", "电影", "唐朝", "光合作用", "Java", "数据库", "旅游",
           "合同法", "请假流程", "报销制度", "年终奖", "咖啡", "黑洞", "恐龙", "月亮", "钢琴", "机器学习", "房价", "高考", "春节", "减肥", "感冒", "手机", "电动车", "围棋", "三国演义",
           "红楼梦", "牛顿", "三角函数", "微积分", "质数", "圆周率", "勾股定理", "方程", "概率", "排序算法", "链表", "操作系统", "VPN", "打印机", "公司食堂", "考勤", "发票", "上海",
           "日本", "美国总统", "奥运会", "火星", "原子弹", "蛋糕", "猫", "狗", "兔子", "鸡", "植物", "历史", "地理", "音乐", "绘画", "诗歌", "小说", "英语", "日记", "作文"),
    "en": ("artificial intelligence", "Paris", "the Great Wall", "quantum mechanics", "pancakes", "Shakespeare", "blockchain", "stocks", "the weather",
           "blood pressure", "relativity", "football", "movies", "the Roman Empire", "photosynthesis", "Java", "databases", "travel", "contract law",
           "vacation policy", "expenses", "bonuses", "coffee", "black holes", "dinosaurs", "the moon", "the piano", "machine learning", "house prices",
           "exams", "Christmas", "losing weight", "a cold", "phones", "electric cars", "chess", "Hamlet", "Newton", "trigonometry", "calculus",
           "prime numbers", "pi", "the Pythagorean theorem", "equations", "probability", "sorting algorithms", "linked lists", "operating systems",
           "VPN access", "printers", "the canteen", "payroll", "invoices", "London", "Japan", "the president", "the Olympics", "Mars", "atoms", "cake",
           "cats", "dogs", "rabbits", "chickens", "plants", "history", "geography", "music", "painting", "poetry", "novels", "French", "diaries"),
}
_ASKING = {
    "zh": ("什么是{t}?", "介绍一下{t}", "{t}是什么意思?", "写一首关于{t}的诗", "怎么学习{t}?", "{t}的历史是什么?", "为什么{t}这么重要?", "翻译成英文:{t}", "{t}", "我想了解{t}", "写一篇关于{t}的作文",
           "{t}有什么好处?", "{t}多少钱?", "谁发明了{t}?", "给我讲讲{t}", "关于{t}你知道些什么?", "请解释{t}", "用Python写一个{t}的程序", "{t}和{u}有什么区别?", "请证明{t}", "我喜欢{t},你呢?",
           "最好的{t}在哪里?", "{t}怎么办?", "今天{t}怎么样?", "讲一个{t}的笑话", "如何申请{t}?", "{t}在哪里?", "证明{t}的定理", "写一个函数计算{t}", "比较{t}与{u}"),
    "en": ("What is {t}?", "Tell me about {t}.", "Explain {t} to me.", "Write a poem about {t}.", "How can I learn about {t}?", "What is the history of {t}?",
           "Why is {t} important?", "Translate to French: {t}", "{t}", "I want to know more about {t}", "Write an essay on {t}", "What are the benefits of {t}?",
           "How much does {t} cost?", "Who invented {t}?", "What do you know about {t}?", "Write a Python program about {t}.",
           "What is the difference between {t} and {u}?", "Prove something about {t}.", "I like {t}. And you?", "Where is the best place for {t}?",
           "What should I do about {t}?", "Tell me a joke about {t}.", "How do I apply for {t}?", "Where is {t}?", "Write a function that computes {t}.",
           "Compare {t} and {u}.", "Summarize {t} in one sentence.", "Is {t} good for me?", "Can you help me with {t}?", "When did {t} begin?"),
}
_NEAR = {
    "zh": ("{a}÷{b}等于多少?", "{a}除以{b}", "{a}/{b}=?", "{a}的{c}次方是多少?", "{A}+{b}=?", "{A}×{b}等于多少?", "{a}+{b}+{c}等于多少?", "{a}×{b}×{c}=?", "{a}.{c}+{b}等于多少?",
           "{n}天前是星期几?今天是{d}", "今天是{d},{n}天前是星期几?", "{n}个月后是几月?", "今天几号?", "今天星期几?", "现在几点?", "{a}的平方根是多少?", "小明有{a}个苹果,吃了{c}个,还剩几个?",
           "一辆车每小时走{a}公里,{c}小时走多远?", "{a}是质数吗?", "{a}和{b}哪个大?", "求方程x+{a}={b}的解", "长{a}宽{c}的长方形面积是多少?", "{a}%的{b}是多少?", "鸡有几条腿?", "兔子吃什么?",
           "奇数是什么?", "什么是回文?", "偶数的平方能被4整除吗?", "写一个Python函数排序列表", "写一个Java函数判断回文", "写一个Python函数求阶乘", "证明根号2是无理数", "1到{b}的和是多少?", "{a}!等于多少?",
           "笼子里有{c}只猫,几条腿?", "{A}-{B}=?", "{A}乘以{B}", "{A}加{B}等于多少?", "计算{A}×{b}", "{b}-{A}是多少?", "{A}加上{b}"),
    "en": ("What is {a}÷{b}?", "{a} divided by {b}", "{a}/{b}=?", "What is {a} to the power of {c}?", "{A}+{b}=?", "What is {A} times {b}?", "{a}+{b}+{c}=?",
           "{a}*{b}*{c}", "What is {a}.{c} plus {b}?", "If today is {d}, what day was it {n} days ago?", "What day was it {n} days before {d}?",
           "Which month is it in {n} months?", "What is the date today?", "What day is today?", "What time is it?", "What is the square root of {a}?",
           "Tom has {a} apples and eats {c}. How many are left?", "A car drives {a} km per hour. How far in {c} hours?", "Is {a} a prime number?",
           "Which is larger, {a} or {b}?", "Solve x + {a} = {b}.", "What is the area of a rectangle of {a} by {c}?", "What is {c}% of {b}?",
           "How many legs does a chicken have?", "What do rabbits eat?", "What is an odd number?", "What is a palindrome?",
           "Is the square of an even number divisible by 4?", "Write a Python function that sorts a list.", "Write a Java function that checks a palindrome.",
           "Write a Python function for the factorial.", "Prove that the square root of 2 is irrational.", "What is the sum of 1 to {b}?", "What is {a}!?",
           "A cage has {c} cats. How many legs?", "{A}-{B}=?", "{A} times {B}", "What is {A} plus {B}?"),
}
_DAYS = {"zh": ("星期一", "星期三", "周五", "星期日"), "en": ("Monday", "Wednesday", "Friday", "Sunday")}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYMBOLS = "!@#$%^&*()_+-=[]{};:'\",.<>/?\\|`~0123456789"
_EMOJI = "😀🚀🎉🐰🐔❤👍🌍🔥🤖"
_LANGUAGES = ("Java", "C++", "JavaScript", "Go", "Rust", "Ruby", "PHP", "C", "SQL", "Kotlin", "Swift", "Perl")
_TASKS = {
    "zh": ("排序列表", "求阶乘", "反转字符串", "统计单词个数", "读取文件", "判断质数", "求最大值", "计算斐波那契数列", "下载网页", "合并两个列表", "解析JSON", "求平均数", "去掉重复元素",
           "连接数据库", "发送邮件", "求最大公约数", "二分查找", "打印九九乘法表", "把字符串转成大写", "判断闰年", "生成随机数", "计算字符串长度", "判断奇偶数", "求两数之和"),
    "en": ("sorts a list", "computes a factorial", "reverses a string", "counts words", "reads a file", "checks for prime numbers", "finds the maximum", "computes Fibonacci numbers",
           "downloads a page", "merges two lists", "parses JSON", "computes an average", "removes duplicates", "connects to a database", "sends an email",
           "computes the greatest common divisor", "does a binary search", "prints a multiplication table", "makes a string upper case", "checks for a leap year",
           "draws random numbers", "counts the letters of a string", "tells odd from even", "adds two numbers"),
}
_CODING = {
    "zh": ("写一个{g}函数{t}", "用{g}{t}", "怎么用{g}{t}?", "请用{g}写一个程序,{t}", "给我一段{g}代码{t}", "帮我写个{g}函数,{t}", "{g}怎么{t}?", "编写{g}函数来{t}"),
    "en": ("Write a {g} function that {t}.", "Give me {g} code that {t}.", "Show me a {g} program that {t}.", "I need a {g} function which {t}.", "Can you write {g} code that {t}?",
           "Implement a {g} function that {t}.", "Please write a {g} script that {t}.", "Create a {g} method that {t}."),
}
_PALINDROME = {"zh": ("判断回文", "判断回文字符串", "检查回文串", "判断字符串是否为回文"),
               "en": ("checks a palindrome", "tests whether a string is a palindrome", "detects palindromes", "checks if a word is a palindrome")}


def other_question(rng: random.Random, language: str, *, held: bool) -> str:
    """A question outside all families. held: draw from the topics and phrasings that are held out of training."""

    def draw(listed: tuple[str, ...]) -> str:
        return rng.choice((held_out if held else trained)(listed))

    kind = rng.random()
    if kind < 0.35:
        text = draw(_ASKING[language]).format(t=draw(_TOPICS[language]), u=draw(_TOPICS[language]))
    elif kind < 0.62:
        text = draw(_NEAR[language]).format(
            a=rng.randint(1, 999),
            b=rng.randint(1, 999),
            c=rng.randint(2, 20),
            n=rng.randint(1, 365),
            A=rng.randint(1000, 99999),
            B=rng.randint(1000, 99999),
            d=rng.choice(_DAYS[language]),
        )
    elif kind < 0.72:
        text = _too_large(rng, language)
    elif kind < 0.78:
        text = draw(_CODING[language]).format(g="Python", t=draw(_TASKS[language]))
    elif kind < 0.86:
        text = draw(_CODING[language]).format(
            g=draw(_LANGUAGES), t=rng.choice((*_PALINDROME[language], draw(_TASKS[language])))
        )
    else:
        text = _jumble(rng, language)
    if rng.random() < 0.15:
        text = rng.choice(BEFORE[language]) + text
    return text


def _too_large(rng: random.Random, language: str) -> str:
    """An arithmetic question with numbers of more than three digits."""
    family = rng.choice(tuple(SIGNS))
    grammar = rng.choice(CLAUSES[family][language])
    large = rng.randint(1000, 10 ** rng.randint(4, 6))
    small = rng.randint(1, 10 ** rng.randint(1, 5))
    a, b = (large, small) if rng.random() < 0.5 else (small, large)
    return "".join(rng.choice(choices) for choices in grammar).format(a=a, b=b, op=rng.choice(SIGNS[family]))


def _jumble(rng: random.Random, language: str) -> str:
    if language == "zh":
        return "".join(
            chr(rng.randint(0x4E00, 0x9FA5)) if rng.random() < 0.7 else rng.choice("的是在了不和有我他这,。?")
            for _ in range(rng.randint(1, 14))
        )
    words = ["".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 9))) for _ in range(rng.randint(1, 8))]
    if rng.random() < 0.3:
        words.append("".join(rng.choice(_SYMBOLS) for _ in range(rng.randint(1, 12))))
    if rng.random() < 0.2:
        words.append(rng.choice(_EMOJI))
    return " ".join(words)


# Written by hand, from no template: the model was trained on nothing like them.
STRANGERS = (
    "法国的首都是哪里?", "给我推荐一本好书", "怎样煮一碗牛肉面?", "公司的年假有几天?", "Docker和虚拟机有什么不同", "帮我写一封辞职信",
    "太阳有多大", "请用一句话总结《西游记》", "为什么天是蓝的?", "服务器连不上怎么办", "一年有多少天?", "鲸鱼是鱼吗",
    "把下面的句子翻译成英语:我爱你", "什么时候发工资?", "3的倒数是多少", "帮我查一下快递", "今晚吃什么", "中国有多少个省?",
    "如何重置密码?", "讲个故事", "水的沸点是多少度", "孔子是谁", "写一段Rust代码读取文件", "世界上最高的山是什么山",
    "嗯", "测试", "？？？", "你觉得人生的意义是什么", "心情不好", "解释一下TCP三次握手",
    "What is the capital of France?", "Recommend a good book.", "How do I cook rice?", "How many vacation days do I get?", "What's the difference between Docker and a VM?", "Write a resignation letter.",
    "How big is the sun?", "Summarize Moby Dick.", "Why is the sky blue?", "The server is unreachable, what now?", "How many days are in a year?", "Is a whale a fish?",
    "Translate 'I love you' into German.", "When is payday?", "What is the reciprocal of 3?", "Track my parcel.", "What's for dinner?", "How many states does the US have?",
    "How do I reset my password?", "Tell me a story.", "At what temperature does water boil?", "Who was Confucius?", "Write Rust code that reads a file.", "What is the tallest mountain?",
    "hmm", "test", "???", "What is the meaning of life?", "I feel sad.", "Explain the TCP handshake.",
)
