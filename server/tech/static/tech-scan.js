// Read QR codes off the camera: a frame on a canvas, a pinned decoder, some eight times a second.

const WIDTH = 640, PAUSE_MS = 120;

function decoder(address) {
  if (window.jsQR) return Promise.resolve(window.jsQR);
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => done(window.jsQR);
    script.onerror = failed;
    document.head.append(script);
  });
}

// Show the camera in `video` and call `found` with each code's text until it says true.
// Returns what stops it. Throws if there is no camera, or none is allowed.
export async function scan(video, address, found) {
  const read = decoder(address);
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: false, video: { facingMode: { ideal: "environment" }, width: { ideal: 1280 } },
  });
  let over = false;
  const stop = () => {
    over = true;
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
  try {
    video.srcObject = stream;
    await video.play();
    const jsQR = await read;
    const canvas = document.createElement("canvas");
    const paint = canvas.getContext("2d", { willReadFrequently: true });
    const look = () => {
      if (over) return;
      if (video.videoWidth) {
        const scale = Math.min(1, WIDTH / video.videoWidth);
        canvas.width = Math.round(video.videoWidth * scale);
        canvas.height = Math.round(video.videoHeight * scale);
        paint.drawImage(video, 0, 0, canvas.width, canvas.height);
        const { data } = paint.getImageData(0, 0, canvas.width, canvas.height);
        const code = jsQR(data, canvas.width, canvas.height, { inversionAttempts: "dontInvert" });
        if (code?.data && found(code.data)) { stop(); return; }
      }
      setTimeout(look, PAUSE_MS);
    };
    look();
  } catch (error) {
    stop();
    throw error;
  }
  return stop;
}
