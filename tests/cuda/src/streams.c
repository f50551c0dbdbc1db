// Streams and events. Work is done when it is asked for, so a stream is only a made-up clock.
#include "driver.h"

typedef struct Event {
    double at_ns;
    Stream *stream;
} Event;
static Stream null_stream;
static uint64_t next_stream = 1;
double probe_pending;

Stream *stream_of(CUstream s) { return s ? (Stream *)s : &null_stream; }

CUresult cuStreamCreate(CUstream *out, unsigned f) {
    (void)f;
    Stream *s = calloc(1, sizeof *s);
    s->id = next_stream++;
    *out = (CUstream)s;
    say("stream\t%lu", s->id);
    return CUDA_SUCCESS;
}
CUresult cuStreamCreateWithPriority(CUstream *out, unsigned f, int p) {
    (void)p;
    return cuStreamCreate(out, f);
}
CUresult cuStreamDestroy_v2(CUstream s) {
    free(s);
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream s) {
    pthread_mutex_lock(&mu);
    total.syncs++;
    say("S\tstream\t%lu", stream_of(s)->id);
    flush_log();
    pthread_mutex_unlock(&mu);
    return CUDA_SUCCESS;
}
CUresult cuStreamQuery(CUstream s) {
    (void)s;
    return CUDA_SUCCESS;
}
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned f) {
    (void)f;
    Event *ev = (Event *)e;
    pthread_mutex_lock(&mu);
    say("W\t%lu\t%lu", stream_of(s)->id, ev->stream ? ev->stream->id : 0);
    if (ev->at_ns > stream_of(s)->clock_ns) stream_of(s)->clock_ns = ev->at_ns;
    pthread_mutex_unlock(&mu);
    return CUDA_SUCCESS;
}
CUresult cuEventCreate(CUevent *out, unsigned f) {
    (void)f;
    *out = (CUevent)calloc(1, sizeof(Event));
    total.events++;
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy_v2(CUevent e) {
    free(e);
    return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent e, CUstream s) {
    Event *ev = (Event *)e;
    pthread_mutex_lock(&mu);
    ev->stream = stream_of(s);
    ev->at_ns = stream_of(s)->clock_ns += 500;
    say("R\t%lu", stream_of(s)->id);
    pthread_mutex_unlock(&mu);
    return CUDA_SUCCESS;
}
CUresult cuEventSynchronize(CUevent e) {
    (void)e;
    pthread_mutex_lock(&mu);
    total.syncs++;
    say("S\tevent");
    flush_log();
    double ns = probe_pending;
    probe_pending = 0;
    pthread_mutex_unlock(&mu);
    if (ns > 0) usleep((useconds_t)(ns / 1e3));
    return CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent e) {
    (void)e;
    return CUDA_SUCCESS;
}
CUresult cuEventElapsedTime_v2(float *ms, CUevent a, CUevent b) {
    pthread_mutex_lock(&mu);
    *ms = (float)((((Event *)b)->at_ns - ((Event *)a)->at_ns) / 1e6);
    say("T\t%.6f", *ms);
    pthread_mutex_unlock(&mu);
    return CUDA_SUCCESS;
}
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) {
    return cuEventElapsedTime_v2(ms, a, b);
}
CUresult cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode m) {
    (void)s;
    (void)m;
    return fail(CUDA_ERROR_NOT_SUPPORTED, "graph capture");
}
CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *c) {
    (void)s;
    *c = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
CUresult cuLaunchHostFunc(CUstream s, CUhostFn f, void *data) {
    (void)s;
    f(data);
    return CUDA_SUCCESS;
}
