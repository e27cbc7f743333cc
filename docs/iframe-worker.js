// Search in pages that are opened from a disk: browsers start no worker there, so the worker's script runs in a hidden frame.
// It is a worker as far as mkdocs-material's search needs one: messages are copied, in order, both ways.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = "<!doctype html><title>worker</title>"
      this.started = new Promise((resolve, reject) => {
        this.frame.onload = () => {
          const inside = this.frame.contentWindow
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }))
          const script = inside.document.createElement("script")
          script.onload = () => resolve(inside)
          script.onerror = () => reject(new Error(`cannot load ${url}`))
          script.src = url
          inside.document.head.append(script)
        }
      })
      document.body.append(this.frame)
    }

    async postMessage(data) {
      const inside = await this.started
      inside.dispatchEvent(new inside.MessageEvent("message", { data: inside.structuredClone(data) }))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
