/* OpenSSL's library, found at run time: what is declared here is all that is used of it, so no headers are needed. */
#ifndef TLS_H
#define TLS_H

#include <dlfcn.h>

#include "program.h"

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;
typedef struct ssl_session_st SSL_SESSION;
typedef struct x509_store_ctx_st X509_STORE_CTX;

/* Numbers of openssl/ssl.h, which have been these since 1.1.1. */
enum {
    FILETYPE_PEM = 1,
    ERROR_SSL = 1, ERROR_WANT_READ = 2, ERROR_WANT_WRITE = 3, ERROR_SYSCALL = 5, ERROR_ZERO_RETURN = 6,
    CTRL_MODE = 33, CTRL_READ_AHEAD = 41, CTRL_SESSION_CACHE = 44, CTRL_MINIMUM_VERSION = 123,
    MODE_MOVING_BUFFER = 2, CACHE_CLIENT = 0x001, CACHE_NOTHING_INSIDE = 0x300, TLS_1_3 = 0x0304
};

#define OPENSSL(NAME) \
    NAME(const SSL_METHOD *, TLS_client_method, (void)) \
    NAME(const SSL_METHOD *, TLS_server_method, (void)) \
    NAME(SSL_CTX *, SSL_CTX_new, (const SSL_METHOD *)) \
    NAME(long, SSL_CTX_ctrl, (SSL_CTX *, int, long, void *)) \
    NAME(int, SSL_CTX_use_certificate_chain_file, (SSL_CTX *, const char *)) \
    NAME(int, SSL_CTX_use_PrivateKey_file, (SSL_CTX *, const char *, int)) \
    NAME(void, SSL_CTX_set_cert_verify_callback, (SSL_CTX *, int (*)(X509_STORE_CTX *, void *), void *)) \
    NAME(void, SSL_CTX_sess_set_new_cb, (SSL_CTX *, int (*)(SSL *, SSL_SESSION *))) \
    NAME(SSL *, SSL_new, (SSL_CTX *)) \
    NAME(void, SSL_free, (SSL *)) \
    NAME(int, SSL_set_fd, (SSL *, int)) \
    NAME(int, SSL_set_ex_data, (SSL *, int, void *)) \
    NAME(void *, SSL_get_ex_data, (const SSL *, int)) \
    NAME(void, SSL_set_connect_state, (SSL *)) \
    NAME(void, SSL_set_accept_state, (SSL *)) \
    NAME(int, SSL_set_session, (SSL *, SSL_SESSION *)) \
    NAME(int, SSL_session_reused, (const SSL *)) \
    NAME(void, SSL_SESSION_free, (SSL_SESSION *)) \
    NAME(int, SSL_do_handshake, (SSL *)) \
    NAME(int, SSL_read, (SSL *, void *, int)) \
    NAME(int, SSL_write, (SSL *, const void *, int)) \
    NAME(int, SSL_has_pending, (const SSL *)) \
    NAME(int, SSL_shutdown, (SSL *)) \
    NAME(int, SSL_get_error, (const SSL *, int)) \
    NAME(unsigned long, ERR_peek_error, (void)) \
    NAME(void, ERR_clear_error, (void)) \
    NAME(const char *, ERR_reason_error_string, (unsigned long))

#define DECLARE(RESULT, NAME, PARAMETERS) static RESULT(*NAME) PARAMETERS __attribute__((unused));
OPENSSL(DECLARE)

/* What keeps it from being used, in words; NULL if nothing does. */
static inline const char *find_openssl(void) {
    void *library = dlopen("libssl.so.3", RTLD_NOW);
    if (!library)
        library = dlopen("libssl.so", RTLD_NOW);
    if (!library)
        return "libssl.so.3, OpenSSL's library, cannot be loaded";
#define FIND(RESULT, NAME, PARAMETERS) \
    if (!(*(void **)&NAME = dlsym(library, #NAME))) \
        return "OpenSSL's library has no " #NAME;
    OPENSSL(FIND)
    return NULL;
}

/* Reads take all that has come: by default they ask the kernel for each record's head first, and then for the rest. */
static inline SSL_CTX *new_context(const SSL_METHOD *method) {
    SSL_CTX *context = SSL_CTX_new(method);
    if (!context) {
        fprintf(stderr, "SSL_CTX_new failed\n");
        exit(1);
    }
    SSL_CTX_ctrl(context, CTRL_READ_AHEAD, 1, NULL);
    SSL_CTX_ctrl(context, CTRL_MODE, MODE_MOVING_BUFFER, NULL);
    SSL_CTX_ctrl(context, CTRL_MINIMUM_VERSION, TLS_1_3, NULL);
    return context;
}

static inline SSL *new_connection(SSL_CTX *context, int fd) {
    SSL *ssl = SSL_new(context);
    if (!ssl || SSL_set_fd(ssl, fd) != 1) {
        fprintf(stderr, "SSL_new failed\n");
        exit(1);
    }
    return ssl;
}

#endif
