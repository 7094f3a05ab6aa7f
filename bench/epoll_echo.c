/* The limit: an echo server in C on one epoll set, one thread. `epoll_echo echo|lines|stream`
 *
 * Prints its port when it serves, and on SIGTERM its processor seconds and memory as one line of JSON. A line is a
 * message like any other here. With `stream`, a connection whose first byte is 'S' is sent bytes as fast as it reads.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>

#include "program.h"

enum { BACKLOG = 1024, EVENTS = 256, CHUNK = 65536 };

struct conn {
    int fd;
    int streams;
    size_t pending, done; /* bytes of `rest` to send, and those sent */
    char *rest;           /* what the socket's buffer did not take */
};

static volatile sig_atomic_t ended;
static int poll_fd, may_stream;
static char chunk[CHUNK];

static void on_end(int number) { ended = number; }

static void watch(struct conn *c, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poll_fd, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void end(struct conn *c) {
    close(c->fd); /* which takes it out of the set */
    free(c->rest);
    free(c);
}

static void take_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return; /* none left, or none to be had now: the set tells of the next */
        struct conn *c = room(sizeof *c);
        c->fd = fd;
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

/* Keep what could not be sent; until it is, nothing more is read. */
static void keep(struct conn *c, const char *data, size_t size) {
    c->rest = malloc(size);
    if (!c->rest)
        die("malloc");
    memcpy(c->rest, data, size);
    c->pending = size;
    c->done = 0;
    watch(c, EPOLL_CTL_MOD, EPOLLOUT);
}

static void answer(struct conn *c) {
    static char data[CHUNK];
    ssize_t size = recv(c->fd, data, sizeof data, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        end(c);
        return;
    }
    if (may_stream && data[0] == 'S') {
        c->streams = 1;
        watch(c, EPOLL_CTL_MOD, EPOLLOUT);
        return;
    }
    ssize_t sent = send(c->fd, data, (size_t)size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        end(c);
        return;
    }
    if (sent < 0)
        sent = 0;
    if (sent < size)
        keep(c, data + sent, (size_t)(size - sent));
}

static void send_on(struct conn *c) {
    const char *data = c->streams ? chunk : c->rest + c->done;
    ssize_t sent = send(c->fd, data, c->streams ? sizeof chunk : c->pending - c->done, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN)
        return;
    if (sent < 0) {
        end(c);
        return;
    }
    c->done += (size_t)sent;
    if (c->streams || c->done < c->pending)
        return;
    free(c->rest);
    c->rest = NULL;
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static int listen_on_any_port(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    bind_to_any_port(fd);
    if (listen(fd, BACKLOG) < 0)
        die("listen");
    say_port(fd);
    return fd;
}

int main(int count, char **arguments) {
    may_stream = count > 1 && !strcmp(arguments[1], "stream");
    struct sigaction action = {.sa_handler = on_end}; /* without SA_RESTART, so that the wait ends */
    sigaction(SIGTERM, &action, NULL);
    memset(chunk, 's', sizeof chunk);
    struct conn listener = {0};
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    listener.fd = listen_on_any_port();
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    while (!ended) {
        struct epoll_event ready[EVENTS];
        int found = epoll_wait(poll_fd, ready, EVENTS, 1000); /* bounded: a signal may come just before it */
        for (int i = 0; i < found; i++) {
            struct conn *c = ready[i].data.ptr;
            if (c == &listener)
                take_all(c->fd);
            else if (c->streams || c->rest)
                send_on(c);
            else
                answer(c);
        }
    }
    say_what_it_took(0);
    return 0;
}
