"""A LangChain chain with Dray: a prompt, the model, its answer as text; one streamed, then several at once.

pip install langchain-openai
export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=dray-...
python examples/chain.py "27 + 48" "20 + 22"
"""

import os
import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI


def chain() -> Runnable[dict[str, str], str]:
    """Maps {"sum": "27 + 48"} to the answer."""
    # Instructions go into the user's message, because R1 distills follow no system prompt.
    prompt = ChatPromptTemplate.from_messages([("user", "What is {sum}?")])
    model = ChatOpenAI(
        base_url=os.environ["OPENAI_BASE_URL"], model=os.environ.get("MODEL", "dray-demo"), temperature=0, max_retries=3
    )
    return prompt | model | StrOutputParser()


def main(sums: list[str]) -> None:
    """Prints the first answer as it arrives, then all of them."""
    adder = chain()
    for text in adder.stream({"sum": sums[0]}):
        print(text, end="", flush=True)
    print("\n--")
    for answer in adder.batch([{"sum": text} for text in sums], config={"max_concurrency": 4}):
        print(answer)


if __name__ == "__main__":
    main(sys.argv[1:])
