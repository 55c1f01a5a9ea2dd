"""The chat page's fonts and colours, beside chat.css."""

import gradio as gr


def theme() -> gr.themes.Base:
    """Gradio's theme, with the system's fonts, which also have Chinese, and greys that can be read."""
    greys = ("body_text_color_subdued", "block_info_text_color", "input_placeholder_color")
    colours = dict.fromkeys(greys, "*neutral_600") | {f"{grey}_dark": "*neutral_300" for grey in greys}
    fonts = {"font": ("system-ui", "Noto Sans CJK SC", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    changed: gr.themes.Base = gr.themes.Default(**fonts).set(**colours)
    return changed
