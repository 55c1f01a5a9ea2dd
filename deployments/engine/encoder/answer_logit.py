"""Makes a reranker of a causal language model: one number for each text, not the logits of all words at all tokens."""

from typing import Any

import numpy as np

LAST = "last"
"""The graph's new input: where the last token of each text stands. int64, of shape [texts, 1]."""


def keep_answer_logit(graph: Any, yes: int, no: int) -> None:
    """Changes a graph so that its output is the logit of one token less that of another after each text's last token.

    Its sigmoid is the probability of the first if only these two could follow. The output has the shape [texts, 1]; the
    logits of the other tokens, gigabytes for a batch, are never computed. graph: an openvino.Model whose first output
    are logits of shape [texts, tokens, words]. Raises ValueError for a graph that computes them in another way.
    """
    import openvino.opset15 as operations

    result = graph.get_results()[0]
    product = result.input_value(0).get_node()
    while product.get_type_name() == "Convert":
        product = product.input_value(0).get_node()
    if product.get_type_name() != "MatMul":
        raise ValueError(f"its logits come from {product.get_type_name()}, not from a MatMul")
    last = operations.parameter([-1, 1], np.int64, name=LAST)
    last.output(0).set_names({LAST})
    axis = operations.constant(np.int64(1))
    product.input(0).replace_source_output(
        operations.gather(product.input_value(0), last, axis, batch_dims=1).output(0)
    )
    words = operations.constant(np.int64(2))
    of_yes, of_no = (
        operations.gather(result.input_value(0), operations.constant(np.array(token, np.int64)), words)
        for token in (yes, no)
    )
    result.input(0).replace_source_output(operations.subtract(of_yes, of_no).output(0))
    graph.add_parameters([last])
    graph.validate_nodes_and_infer_types()
