"""Chat templates: how each model family writes a conversation as text."""

from dataclasses import dataclass, replace

from minillava.inputs.tokenizer import STOP

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
VISION_SYSTEM = (  # the LLaVA authors' system message for LLaMA 2 and 3
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
LLAMA_3_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
LLAMA_3_SYSTEM = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{VISION_SYSTEM}<|eot_id|>"


@dataclass(frozen=True)
class Template:
    """The texts around questions and answers. A question and its answer are written as

        opening or human, QUESTION, after_question, assistant, before_answer, ANSWER, after_answer, stop, after_stop

    The loss is on ``before_answer`` to ``stop``, both included. A template contains the bos token only if the family's
    own chat template does; otherwise ``Tokenizer.add_bos`` decides.
    """

    opening: str = ""  # before the first question; includes the system message
    human: str = ""  # before every later question
    after_question: str = ""
    assistant: str = ""  # a prompt that asks for an answer ends here
    before_answer: str = ""
    after_answer: str = ""
    stop: str = ""  # the model learns to write it, and generation ends with it
    after_stop: str = ""
    picture_only: bool = False  # the question's words are left out: only a picture and its caption
    for_captions: str = "plain"  # the name of the template that stage 1 uses


V0 = Template(  # paper, table 2
    opening=f"{SYSTEM}###\nHuman: ",
    human="Human: ",
    after_question="###\n",
    assistant="Assistant:",
    before_answer=" ",
    stop=STOP,
    after_stop="\n",
    for_captions="brief",
)
TEMPLATES = {
    "v0": V0,
    "brief": replace(V0, opening="", human=""),  # stage 1: X_q, X_v <STOP> \n Assistant: X_a <STOP> \n
    "v1": Template(  # Vicuna 1.1 and later, LLaVA-1.5
        opening=f"{SYSTEM.replace('human', 'user')} USER: ",
        human="USER: ",
        after_question=" ",
        assistant="ASSISTANT:",
        before_answer=" ",
        stop="</s>",
    ),
    "llama-2": Template(
        opening=f"<s>[INST] <<SYS>>\n{VISION_SYSTEM}\n<</SYS>>\n\n",
        human="<s>[INST] ",
        after_question=" ",
        assistant="[/INST]",
        before_answer=" ",
        after_answer=" ",
        stop="</s>",
    ),
    "llama-3": Template(
        opening=LLAMA_3_SYSTEM + LLAMA_3_USER,
        human=LLAMA_3_USER,
        after_question="<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stop="<|eot_id|>",
    ),
    "chatml": Template(  # Qwen
        opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        human="<|im_start|>user\n",
        after_question="<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        stop="<|im_end|>",
        after_stop="\n",
    ),
    "zephyr": Template(  # TinyLlama-1.1B-Chat
        opening="<|user|>\n",
        human="<|user|>\n",
        after_question="</s>\n",
        assistant="<|assistant|>\n",
        stop="</s>",
        after_stop="\n",
    ),
    "plain": Template(stop="\n", picture_only=True),  # LLaVA-1.5's stage 1: the picture, its caption, a newline
}
