// A picture by ECharts, which is removed cleanly at any time, and whose options are data: nothing in them is run.
import { echarts } from "nicegui-echart";

export default {
  template: "<div></div>",
  props: { options: Object },
  mounted() {
    this.picture = echarts.init(this.$el, null, { renderer: "svg" });
    this.picture.setOption(this.options);
    this.sizes = new ResizeObserver(() => this.picture.resize());
    this.sizes.observe(this.$el);
  },
  watch: {
    options(found) {
      this.picture.setOption(found, { notMerge: true });
    },
  },
  methods: {
    merge(part) {
      this.picture.setOption(part);
    },
  },
  unmounted() {
    this.sizes.disconnect();
    this.picture.dispose();
  },
};
