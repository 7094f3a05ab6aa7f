/* The limit over TLS: an echo server in C, OpenSSL on one epoll set, one thread. `tls_echo SERVICE FILE`
 *
 * FILE has certificate and key. Prints its port when it serves, or `no: ` and why it does not; on SIGTERM its processor
 * seconds and memory as one line of JSON. Contexts are as they are by default, so two tickets follow a handshake.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>

#include "tls.h"

enum { BACKLOG = 1024, EVENTS = 256, CHUNK = 16384 };

struct conn {
    int fd, open;
    unsigned events;
    SSL *ssl;
    size_t pending; /* bytes of `rest` that are still to be sent */
    char *rest;
};

static volatile sig_atomic_t ended;
static int poll_fd;
static SSL_CTX *context;

static void on_end(int number) { ended = number; }

static void watch(struct conn *c, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (events != c->events && epoll_ctl(poll_fd, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
    c->events = events;
}

static void end(struct conn *c) {
    SSL_free(c->ssl);
    close(c->fd); /* which takes it out of the set */
    free(c->rest);
    free(c);
}

static void take_all(int listener) {
    for (;;) {
        int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return; /* none left, or none to be had now: the set tells of the next */
        struct conn *c = room(sizeof *c);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* an echo must not wait for the tickets' receipt */
        c->fd = fd;
        c->ssl = new_connection(context, fd);
        SSL_set_accept_state(c->ssl);
        watch(c, EPOLLIN);
    }
}

/* Have the set tell when a call is worth another try; 0 if the connection is over. */
static int waits(struct conn *c, int result) {
    int error = SSL_get_error(c->ssl, result);
    if (error == ERROR_WANT_READ || error == ERROR_WANT_WRITE) {
        watch(c, error == ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
        return 1;
    }
    if (error == ERROR_ZERO_RETURN)
        SSL_shutdown(c->ssl);
    ERR_clear_error();
    end(c);
    return 0;
}

/* What could not be sent is kept; until it is, nothing more is read. */
static int send_or_keep(struct conn *c, const char *data, size_t size) {
    int sent = SSL_write(c->ssl, data, (int)size);
    if (sent > 0) {
        c->pending = 0;
        return 1;
    }
    if (!c->pending) {
        if (!c->rest)
            c->rest = room(CHUNK);
        memcpy(c->rest, data, size);
        c->pending = size;
    }
    waits(c, sent);
    return 0;
}

static void advance(struct conn *c) {
    static char data[CHUNK];
    if (!c->open) {
        int result = SSL_do_handshake(c->ssl);
        if (result != 1) {
            waits(c, result);
            return;
        }
        c->open = 1;
        watch(c, EPOLLIN);
        if (!SSL_has_pending(c->ssl))
            return;
    }
    if (c->pending && !send_or_keep(c, c->rest, c->pending))
        return;
    watch(c, EPOLLIN);
    do {
        int size = SSL_read(c->ssl, data, sizeof data);
        if (size <= 0) {
            waits(c, size);
            return;
        }
        if (!send_or_keep(c, data, (size_t)size))
            return;
    } while (SSL_has_pending(c->ssl)); /* of which the set does not tell */
}

static int listen_on_any_port(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    bind_to_any_port(fd);
    if (listen(fd, BACKLOG) < 0)
        die("listen");
    return fd;
}

static void prepare(const char *file) {
    const char *why_not = find_openssl();
    if (!why_not) {
        context = new_context(TLS_server_method());
        if (SSL_CTX_use_certificate_chain_file(context, file) != 1 ||
            SSL_CTX_use_PrivateKey_file(context, file, FILETYPE_PEM) != 1)
            why_not = "no certificate and key can be read from the file";
    }
    if (why_not) {
        printf("no: %s\n", why_not);
        exit(3);
    }
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "tls_echo: see the head of tls_echo.c for what it takes\n");
        return 2;
    }
    struct sigaction action = {.sa_handler = on_end}; /* without SA_RESTART, so that the wait ends */
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    prepare(arguments[2]);
    struct conn listener = {0};
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    listener.fd = listen_on_any_port();
    watch(&listener, EPOLLIN);
    say_port(listener.fd);
    while (!ended) {
        struct epoll_event ready[EVENTS];
        int found = epoll_wait(poll_fd, ready, EVENTS, 1000); /* bounded: a signal may come just before it */
        for (int i = 0; i < found; i++) {
            struct conn *c = ready[i].data.ptr;
            c == &listener ? take_all(c->fd) : advance(c);
        }
    }
    say_what_it_took(0);
    return 0;
}
