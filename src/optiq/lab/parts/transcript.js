// The turns of a conversation, as plain DOM. Every text is set as text; fences of code become <pre>, nothing becomes markup.
// Turns stand in groups, because a browser passes over what is out of sight group by group; a reply is drawn once per frame.
const NEAR_END = 80; // pixels from the end within which the view follows what is written
const GROUP = 50; // turns

function element(tag, classes, text) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (text !== undefined) made.textContent = text;
  return made;
}

function fill(place, text) {
  const parts = text.split(/^```.*$/m);
  place.replaceChildren(
    ...parts.map((part, n) => {
      const code = n % 2 === 1;
      const made = element(code ? "pre" : "div", code ? "turn-code" : "turn-text", code ? part.replace(/^\n|\n$/g, "") : part.trim());
      if (code) made.tabIndex = 0;
      return made;
    }),
  );
}

function carded(card) {
  const made = element("details", "folded turn-card");
  made.append(element("summary", "", card.title));
  for (const { name, text } of card.texts) {
    const shown = element("pre", "log", text);
    shown.tabIndex = 0;
    made.append(element("div", "soft small", name), shown);
  }
  return made;
}

export default {
  template: `<div role="log" aria-label="Conversation" aria-live="off"></div>`,
  created() {
    this.turns = new Map();
    this.text = this.thought = this.fresh = "";
    this.drawing = 0; // the frame that will draw what is fresh
  },
  methods: {
    show(turns) {
      this.turns.clear();
      this.$el.replaceChildren();
      for (const turn of turns) this.place(this.made(turn));
      this.toEnd();
    },
    add(turn) {
      this.text = this.thought = this.fresh = "";
      this.place(this.made(turn));
      this.toEnd();
    },
    place(root) {
      if (!this.$el.lastChild || this.$el.lastChild.childElementCount >= GROUP) this.$el.append(element("div", "turns"));
      this.$el.lastChild.append(root);
    },
    append(content, reasoning) {
      this.fresh += content;
      this.thought += reasoning;
      if (this.drawing) return;
      this.drawing = requestAnimationFrame(() => this.draw());
    },
    draw() {
      this.drawing = 0;
      const turn = this.turns.get(0);
      if (!turn) return;
      const follow = this.atEnd();
      if (this.thought) {
        turn.thinking.hidden = false;
        turn.thinking.lastChild.textContent = this.thought;
      }
      const content = this.fresh;
      this.fresh = "";
      if (content) {
        this.text += content;
        if (this.text.includes("```")) fill(turn.body, this.text);
        else {
          if (!turn.body.firstChild) turn.body.append(element("div", "turn-text"));
          turn.body.firstChild.append(this.text === content ? content.trimStart() : content);
        }
      }
      if (follow) this.toEnd();
    },
    card(card) {
      const turn = this.turns.get(0);
      if (!turn) return;
      const follow = this.atEnd();
      turn.cards.append(carded(card));
      if (follow) this.toEnd();
    },
    end(turn) {
      const follow = this.atEnd();
      const old = this.turns.get(0);
      const open = old && old.thinking.open;
      this.turns.delete(0);
      const made = this.made(turn);
      if (open) this.turns.get(turn.id).thinking.open = true;
      if (old) old.root.replaceWith(made);
      else this.place(made);
      if (follow) this.toEnd();
    },
    cut(first) {
      for (const [id, turn] of [...this.turns]) {
        if (id >= first || id === 0) {
          turn.root.remove();
          this.turns.delete(id);
        }
      }
    },
    made(turn) {
      const root = element("article", `turn turn-${turn.role === "user" ? "user" : "other"}`);
      root.setAttribute("aria-label", turn.role === "user" ? "You" : "Reply");
      const thinking = element("details", "folded");
      thinking.append(element("summary", "", "Thinking"), element("div", "turn-thinking", turn.reasoning));
      thinking.hidden = !turn.reasoning;
      thinking.open = Boolean(turn.id && turn.reasoning && !turn.content); // all that there is of a reply is not hidden
      const body = element("div", "turn-body");
      if (turn.content) fill(body, turn.content);
      root.append(...turn.files.map((name) => element("div", "turn-file soft", name)), thinking, body);
      const cards = element("div", "turn-cards");
      cards.append(...turn.cards.map(carded));
      root.append(cards);
      const foot = element("div", "turn-foot soft");
      foot.append(element("span", "", turn.footer));
      if (turn.id) {
        foot.append(this.button("Copy", () => navigator.clipboard.writeText(turn.content)));
        const what = turn.role === "user" ? "edit" : "again";
        foot.append(this.button(what === "edit" ? "Edit" : "Regenerate", () => this.$emit("act", { what, id: turn.id })));
      }
      root.append(foot);
      this.turns.set(turn.id, { root, thinking, body, cards });
      return root;
    },
    button(text, act) {
      const made = element("button", "turn-button", text);
      made.type = "button";
      made.addEventListener("click", act);
      return made;
    },
    atEnd() {
      const page = document.documentElement;
      return page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_END;
    },
    toEnd() {
      const page = document.documentElement;
      page.scrollTop = page.scrollHeight;
    },
  },
};
