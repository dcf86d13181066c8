"""Chat templates: how each model family writes a conversation as text."""

from dataclasses import dataclass, replace

from minillava.errors import UserError
from minillava.formats.chat_template import HOLE
from minillava.inputs.tokenizer import MARK, STOP

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
VISION_SYSTEM = (  # the LLaVA authors' system message for LLaMA 2 and 3
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
LLAMA_3_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
LLAMA_3_BEGIN = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"


@dataclass(frozen=True)
class Template:
    """The texts around questions and answers. A question and its answer are written as

        opening or human, QUESTION, after_question, assistant, before_answer, ANSWER, after_answer, stop, after_stop

    The loss is on ``before_answer`` to ``stop``, both included. A template contains the bos token only if the family's
    own chat template does; otherwise ``Tokenizer.add_bos`` decides.
    """

    opening: str = ""  # before the first question; includes the system message
    frame: str = ""  # the opening around any system message, which takes HOLE's place; empty if there can be none
    human: str = ""  # before every later question
    after_question: str = ""
    assistant: str = ""  # a prompt that asks for an answer ends here
    before_answer: str = ""
    after_answer: str = ""
    stop: str = ""  # the model learns to write it, and generation ends with it
    after_stop: str = ""
    picture_only: bool = False  # the question's words are left out: only a picture and its caption
    for_captions: str = "plain"  # the name of the template that stage 1 uses

    def with_system(self, message: str) -> "Template":
        """The same template with another system message. Raises UserError if it can have none."""
        if not self.frame:
            raise UserError("the model's chat template has no system message")
        if not message.strip():
            raise UserError("a system message must not be empty")
        if mark := MARK.search(message):
            raise UserError(f"a system message must not contain {mark[0]}, a mark of chat templates")
        return replace(self, opening=self.frame.replace(HOLE, message))


V0 = Template(  # paper, table 2
    opening=f"{SYSTEM}###\nHuman: ",
    frame=f"{HOLE}###\nHuman: ",
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
    "brief": replace(V0, opening="", frame="", human=""),  # stage 1: X_q, X_v <STOP> \n Assistant: X_a <STOP> \n
    "v1": Template(  # Vicuna 1.1 and later, LLaVA-1.5
        opening=f"{SYSTEM.replace('human', 'user')} USER: ",
        frame=f"{HOLE} USER: ",
        human="USER: ",
        after_question=" ",
        assistant="ASSISTANT:",
        before_answer=" ",
        stop="</s>",
    ),
    "llama-2": Template(
        opening=f"<s>[INST] <<SYS>>\n{VISION_SYSTEM}\n<</SYS>>\n\n",
        frame=f"<s>[INST] <<SYS>>\n{HOLE}\n<</SYS>>\n\n",
        human="<s>[INST] ",
        after_question=" ",
        assistant="[/INST]",
        before_answer=" ",
        after_answer=" ",
        stop="</s>",
    ),
    "llama-3": Template(
        opening=f"{LLAMA_3_BEGIN}{VISION_SYSTEM}<|eot_id|>{LLAMA_3_USER}",
        frame=f"{LLAMA_3_BEGIN}{HOLE}<|eot_id|>{LLAMA_3_USER}",
        human=LLAMA_3_USER,
        after_question="<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stop="<|eot_id|>",
    ),
    "chatml": Template(  # Qwen
        opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        frame=f"<|im_start|>system\n{HOLE}<|im_end|>\n<|im_start|>user\n",
        human="<|im_start|>user\n",
        after_question="<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        stop="<|im_end|>",
        after_stop="\n",
    ),
    "zephyr": Template(  # TinyLlama-1.1B-Chat
        opening="<|user|>\n",
        frame=f"<|system|>\n{HOLE}</s>\n<|user|>\n",
        human="<|user|>\n",
        after_question="</s>\n",
        assistant="<|assistant|>\n",
        stop="</s>",
        after_stop="\n",
    ),
    "plain": Template(stop="\n", picture_only=True),  # LLaVA-1.5's stage 1: the picture, its caption, a newline
}
