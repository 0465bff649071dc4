// The browser's own slider: keys, touch and screen readers work as everywhere. It keeps its place itself while it is moved.
export default {
  template: `<input type="range" class="slider" :min="low" :max="high" :step="step" :value="now" @input="move" />`,
  props: { low: Number, high: Number, step: Number, start: Number },
  data() {
    return { now: this.start };
  },
  methods: {
    move(event) {
      this.now = Number(event.target.value);
      this.$emit("moved", this.now);
    },
  },
};
