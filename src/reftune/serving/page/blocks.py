"""The page: an adapter is chosen, a prompt is written, and both models answer.

All that people or models write is shown by elements that take text, never markup.  Nothing is kept between events,
so that an open page does not hold a server that is about to end.

Must not know: which server it is, how positions are counted.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

# looked at when Gradio is imported: it reports home otherwise
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from gradio.themes import Default

from .asks import Question, Server, Unanswered, side_by_side
from .marks import marked_tokens, summary

__all__ = ["mount"]

CHAT, TEXT = "chat message", "plain text"
TITLE = "reftune: base model and adapter, side by side"
NO_ADAPTER = "no adapter is chosen"
FONTS = ["system-ui", "sans-serif"]
FIXED_FONTS = ["ui-monospace", "monospace"]
# where one token ends and the next begins
CSS = "#tokens .token-container { outline: 1px solid var(--border-color-primary); margin: 1px; }"


def mount(app: Any, *, path: str, key: str | None, scheme: str) -> None:
    """Put the page below `path`; `key` is what its own requests say."""
    gr.mount_gradio_app(
        app,
        Page(key, scheme).blocks(),
        path=path,
        theme=Default(font=FONTS, font_mono=FIXED_FONTS),
        css=CSS,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )


class Page:
    """Its elements and what happens to them."""

    def __init__(self, key: str | None, scheme: str) -> None:
        self.key = key
        self.scheme = scheme

    def blocks(self) -> gr.Blocks:
        with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
            gr.Markdown(f"## {TITLE}")
            with gr.Row():
                # what was typed is sent as it is: the server knows whether there is such an adapter
                adapter = gr.Dropdown([], label="Adapter", allow_custom_value=True, elem_id="adapter", scale=3)
                models = gr.Textbox(label="Models", interactive=False, elem_id="models", max_lines=3, scale=3)
                refresh = gr.Button("Refresh", elem_id="refresh", scale=1)
            prompt = gr.Textbox(label="Prompt", lines=3, max_lines=12, elem_id="prompt")
            with gr.Row():
                kind = gr.Radio([CHAT, TEXT], value=CHAT, label="Sent as", elem_id="kind", scale=2)
                tokens = gr.Number(256, label="Tokens at most", precision=0, minimum=1, elem_id="max-tokens")
                dial = gr.Slider(-2, 3, 1, step=0.1, label="Strength of the adapter", elem_id="strength", scale=2)
                heat = gr.Number(0, label="Temperature", minimum=0, maximum=2, step=0.1, elem_id="temperature")
                ask = gr.Button("Ask both", variant="primary", elem_id="ask")
                stop = gr.Button("Stop", elem_id="stop")
            edited = gr.HighlightedText(
                label="The adapter's prompt: edited tokens are marked",
                show_legend=True,
                show_inline_category=False,
                elem_id="tokens",
            )
            note = gr.Textbox(show_label=False, container=False, interactive=False, elem_id="note")
            with gr.Row():
                base_answer = gr.Textbox(label="Base model", lines=8, interactive=False, elem_id="base-answer")
                own_answer = gr.Textbox(label="With the adapter", lines=8, interactive=False, elem_id="adapter-answer")
            for listener in (page.load, refresh.click):
                listener(self.refreshed, adapter, [adapter, models], api_visibility="private", show_progress="hidden")
            asked = gr.on(
                [ask.click, prompt.submit],
                self.answered,
                [adapter, prompt, kind, tokens, heat, dial],
                [edited, note, base_answer, own_answer],
                api_visibility="private",
                show_progress="hidden",
                trigger_mode="once",
            )
            stop.click(None, cancels=[asked], api_visibility="private")
        # how many are answered at once is for the server to say
        page.queue(default_concurrency_limit=None, max_size=512, api_open=False)
        return page

    async def refreshed(self, chosen: str | None, request: gr.Request) -> tuple[Any, str]:
        """The menu and the line about the models."""
        try:
            async with self._server(request) as server:
                base, adapters = await server.base(), list(await server.adapters())
        except Unanswered as error:
            return gr.skip(), f"[{error}]"
        value = chosen if chosen in adapters else next(iter(adapters), None)
        count = f"{len(adapters)} adapter{'s' if len(adapters) > 1 else ''}" if adapters else "no adapters are loaded"
        return gr.Dropdown(choices=adapters, value=value), f"base model {base}; {count}"

    async def answered(
        self,
        adapter: str | None,
        prompt: str,
        kind: str,
        tokens: float | None,
        heat: float | None,
        dial: float | None,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, Any, str, str]]:
        """The marks, then both answers as they grow."""
        if not prompt:
            yield [], "write a prompt first", "", ""
            return
        question = Question(
            prompt, kind == CHAT, int(tokens or 1), float(heat or 0), 1.0 if dial is None else float(dial)
        )
        async with self._server(request) as server:
            try:
                base = await server.base()
                marks, words = await self._marked(server, adapter, base, question)
            except Unanswered as error:
                yield [], f"[{error}]", "", ""
                return
            yield marks, words, "", "" if adapter else NO_ADAPTER
            models = [base, adapter] if adapter else [base]
            streams = [server.answer(model, question, turned=model == adapter) for model in models]
            async with aclosing(side_by_side(streams)) as texts:
                async for found in texts:
                    yield gr.skip(), gr.skip(), found[0], found[1] if adapter else NO_ADAPTER

    async def _marked(
        self, server: Server, adapter: str | None, base: str, question: Question
    ) -> tuple[list[tuple[str, str | None]], str]:
        if not adapter:
            found, ids, _ = await server.tokens(base, question)
            return marked_tokens(found, ids, {"sites": []}), f"{len(found)} prompt tokens; {NO_ADAPTER}"
        found, ids, spans = await server.tokens(adapter, question)
        known = (await server.adapters()).get(adapter)
        if known is None:
            return marked_tokens(found, ids, {"sites": []}), f"{adapter} is not a ReFT adapter"
        return marked_tokens(found, ids, known, spans), summary(ids, known, spans)

    def _server(self, request: gr.Request) -> Server:
        """At the address that the browser's connection ends at, whatever the request's headers say."""
        assert request.request is not None
        host, port = request.request.scope["server"]
        return Server(f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}", key=self.key)
