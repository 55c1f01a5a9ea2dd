"""The fonts and colours of the gradio pages, beside their style sheets."""

import gradio as gr


def theme() -> gr.themes.Base:
    """Gradio's theme, with the system's fonts, which also have Chinese, and greys that can be read."""
    greys = ("body_text_color_subdued", "block_info_text_color", "input_placeholder_color")
    colours = dict.fromkeys(greys, "*neutral_600") | {f"{grey}_dark": "*neutral_300" for grey in greys}
    # White on gradio's orange is too pale to read.
    colours |= dict.fromkeys(("button_primary_background_fill", "button_primary_background_fill_dark"), "#b45309")
    hover = ("button_primary_background_fill_hover", "button_primary_background_fill_hover_dark")
    colours |= dict.fromkeys(hover, "#92400e")
    fonts = {"font": ("system-ui", "Noto Sans CJK SC", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    changed: gr.themes.Base = gr.themes.Default(**fonts).set(**colours)
    return changed
