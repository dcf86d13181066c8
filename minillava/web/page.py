"""The page: what is where, how it looks, and which method of Chat follows a click."""

from pathlib import Path

import gradio as gr

from minillava.page import data_uri
from minillava.web.visits import MOST_BYTES, SAMPLES, Chat, Visit

STYLE = Path(__file__).with_name("page.css")
MOST_PAGES = 100  # whose visits are remembered, and whose questions may wait
PICTURE = """<label class="drop"><input type="file" accept="image/*" aria-label="Picture"><img src="${value}"
alt="The picture of this talk">Drop or paste a picture here, or click</label>"""
# A file that is picked, dropped or pasted goes to the server as base64; of one that is too large only its size.
DROP = f"""
const send = file => {{
    if (!file) return;
    const about = {{name: file.name, size: file.size}}, reader = new FileReader();
    reader.onload = () => trigger("upload", {{...about, data: reader.result.split(",")[1]}});
    if (file.size > {MOST_BYTES}) trigger("upload", about);
    else reader.readAsDataURL(file);
}};
element.addEventListener("change", event => {{ send(event.target.files[0]); event.target.value = ""; }});
element.addEventListener("dragover", event => event.preventDefault());
element.addEventListener("drop", event => {{ event.preventDefault(); send(event.dataTransfer.files[0]); }});
document.addEventListener("paste", event => send(event.clipboardData.files[0]));
"""
TALK = '<div class="talk" aria-live="polite">${value}</div>'
FOLLOW = "watch('value', () => { const talk = element.firstElementChild; talk.scrollTop = talk.scrollHeight; });"
PICK = """element.addEventListener("click", event => {
    const sample = event.target.closest("button");
    if (sample) trigger("select", {index: Number(sample.value)});
});"""


def build(chat: Chat, temperature: float, top_p: float) -> gr.Blocks:
    """The page: what is where, and what follows a click. ``temperature`` and ``top_p`` are where the sliders begin."""
    samples = "".join(
        f'<button value="{index}" title="Sample {index + 1}"><img src="{data_uri(chat.draw(seed))}" alt=""></button>'
        for index, seed in enumerate(SAMPLES)
    )
    with gr.Blocks(title="minillava", analytics_enabled=False, fill_width=True) as page:
        visit = gr.State(Visit())  # gradio makes a copy for each page
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.HTML("", html_template=PICTURE, js_on_load=DROP, apply_default_css=False)
                samples = gr.HTML(f'<div class="samples">{samples}</div>', js_on_load=PICK, apply_default_css=False)
                scene = gr.Button("Draw a new scene", size="md")
            with gr.Column(scale=3, min_width=300):
                talk = gr.HTML("", html_template=TALK, js_on_load=FOLLOW, apply_default_css=False)
                box = gr.Textbox(
                    placeholder="What is in the centre?", show_label=False, submit_btn="Ask", stop_btn="Stop"
                )
                with gr.Row():
                    again = gr.Button("Answer again", size="sm", min_width=80)
                    new = gr.Button("New talk", size="sm", min_width=80)
                    look = gr.Button("Look inside", size="sm", min_width=80)
                with gr.Row():
                    warmth = gr.Slider(
                        0, max(2, temperature), temperature, label="Temperature", info="0: always the likeliest token"
                    )
                    share = gr.Slider(min(0.05, top_p), 1, top_p, label="Top-p", info="below 1: no unlikely tokens")
        frame = gr.HTML("", js_on_load="watch('value', () => element.scrollIntoView({behavior: 'smooth'}));")

        quick = {"api_visibility": "private", "show_progress": "hidden"}
        slow = {"api_visibility": "private", "show_progress": "minimal", "concurrency_id": "model"}
        shown = [visit, picture, talk]
        page.load(chat.scene, visit, shown, **quick)
        scene.click(chat.scene, visit, shown, **quick)
        picture.upload(chat.upload, visit, shown, **quick)
        samples.select(chat.sample, visit, shown, **quick)
        new.click(chat.forget, visit, talk, **quick)
        box.stop(chat.stop, visit, talk, **quick)
        asked = box.submit(chat.ask, [visit, box], [talk, box], **quick), again.click(chat.again, visit, talk, **quick)
        for event in asked:
            event.success(chat.answer, [visit, warmth, share], talk, **slow)
        look.click(chat.look, visit, frame, **slow)
    page.state_session_capacity = MOST_PAGES
    return page.queue(api_open=False, max_size=MOST_PAGES)
